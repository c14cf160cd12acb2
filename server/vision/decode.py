"""From the bytes of an image file to upright RGB pixels, limits first.

What memory that takes at most is known from the header. Measured with OpenCV 5, with large blocks
given back (`server.host.return_large_blocks`); `tests/unit/vision/test_image_memory.py` does it
again. The output counts twice, as OpenCV hands it over to numpy, or turns it upright, in a copy.
"""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from server.errors import TooLarge, UndecodableImage
from server.host import LARGE_BLOCK_BYTES
from server.vision.codec_output import codecs_muted
from server.vision.header import ImageHeader, read_header
from server.vision.jpeg import refuse_costly_jpeg
from server.vision.letterbox import Frame, resized_hw
from server.vision.png import essential_png

__all__ = [
    "ImageHeader",
    "Require",
    "costliest_bytes",
    "decode",
    "decode_dct_scaled",
    "decoding_bytes",
    "image_bytes",
    "quiet_codecs",
    "read_header",
    "unlimited",
]

# Is told how many bytes decoding takes at most, before it begins; raises where there is no room.
Require = Callable[[int], None]

_OUTPUT_BYTES = 3.5  # a pixel's red, green and blue, and a sixth for what is allocated by rows
# Bytes a pixel at the peak: PNG and BMP 6.3, WebP 11.1 (animated), TIFF 16.1 (16 bits, alpha).
_BYTES_A_PIXEL = {"PNG": 6.5, "BMP": 6.5, "WEBP": 12.0, "TIFF": 16.5}
_COSTLIEST_BYTES_A_PIXEL = 17.0
# To draw into an image and encode it as a PNG (8.8).
_IMAGE_BYTES_A_PIXEL = 10.0
# Times that the file is there once more: one that is all texts and profiles, or one strip, or one
# chunk. A PNG, a WebP and a TIFF have what they read beside what they keep.
_COPIES = {"JPEG": 1, "PNG": 2, "WEBP": 2, "TIFF": 2, "BMP": 0}
_ROWS_BYTES = 2 * 2**20
_SMALL_PARTS_BYTES = 3 * LARGE_BLOCK_BYTES


def unlimited(_: int) -> None:
    """There is room for everything."""


def decode(data: bytes, *, max_pixels: int, require: Require = unlimited) -> NDArray[np.uint8]:
    """Decodes the first frame of an image file.

    Alpha is dropped, of 16 bits the upper 8 are kept, grey and palettes become RGB.

    Args:
        data: a whole JPEG, PNG, WebP, BMP or TIFF file.
        max_pixels: pixels, >= 1; checked before decoding begins.
        require: checks the memory.

    Returns:
        (H, W, 3) uint8, RGB, 0..255, contiguous, upright (EXIF orientation applied).

    Raises:
        UnsupportedImage: `data` is not a file of a served format.
        TooLarge: its header declares more than `max_pixels`; code "too_many_pixels".
        UndecodableImage: it is empty, cut off or corrupt, or its pixels are not integers.

    Source:
        ultralytics 8.4.190 `ultralytics.utils.patches.imread`, pixel for pixel: the model was
        trained on what that returns. (So 8-bit TIFF colours come multiplied with alpha.)
    """
    header = _header_within(data, max_pixels)
    require(decoding_bytes(data, header))
    return _decode_exactly(data, header)


def decode_dct_scaled(
    data: bytes, *, max_pixels: int, full_hw: tuple[int, int], require: Require = unlimited
) -> tuple[NDArray[np.uint8], Frame]:
    """Decodes as `decode` does, but a large JPEG at a half, a quarter or an eighth of its size.

    libjpeg then averages 2 x 2, 4 x 4 or 8 x 8 pixels, and skips most of the work for them.

    Args:
        data: a whole JPEG, PNG, WebP, BMP or TIFF file.
        max_pixels: original pixels, >= 1; checked before decoding begins.
        full_hw: the input that the image will be scaled for, (height, width) in pixels: it
            stays at least twice as large on both sides as it will be there.
        require: checks the memory.

    Returns:
        (h, w, 3) uint8 as from `decode`; and where these pixels lie in the original.

    Raises:
        UnsupportedImage, TooLarge, UndecodableImage: as `decode` does.
    """
    header = _header_within(data, max_pixels)
    orientation = header.jpeg.orientation if header.jpeg else None
    if orientation is not None:
        stored_hw = header.height, header.width
        original_hw = stored_hw[::-1] if orientation >= 5 else stored_hw
        reduction = _reduction(original_hw, full_hw)
        if reduction > 1:
            require(decoding_bytes(data, header, reduction))
            pixels = _imdecode(data, header, _REDUCED_RGB[reduction])
            height, width = pixels.shape[:2]
            covered_hw = height * reduction, width * reduction
            over_h, over_w = covered_hw[0] - original_hw[0], covered_hw[1] - original_hw[1]
            if 0 <= over_h < reduction and 0 <= over_w < reduction:  # else turned otherwise
                above = over_h if orientation in _FROM_THE_BOTTOM else 0
                left = over_w if orientation in _FROM_THE_RIGHT else 0
                return pixels, Frame(original_hw, covered_hw, (above, left))
            del pixels  # not kept beside the second result, for which there is memory
    require(decoding_bytes(data, header))
    pixels = _decode_exactly(data, header)
    return pixels, Frame.whole(pixels)


# IMREAD_REDUCED_COLOR_*, whose BGR excludes RGB; in RGB, these give colours too.
_REDUCED_RGB = {
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2 | cv2.IMREAD_COLOR_RGB,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4 | cv2.IMREAD_COLOR_RGB,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8 | cv2.IMREAD_COLOR_RGB,
}
# EXIF orientations that put the stored last row or column above, or left of, the stored first.
_FROM_THE_BOTTOM, _FROM_THE_RIGHT = (3, 4, 7, 8), (2, 3, 6, 7)


def _reduction(original_hw: tuple[int, int], full_hw: tuple[int, int]) -> int:
    """The largest of 8, 4, 2 and 1 that leaves twice the pixels that the input will have."""
    sides = list(zip(original_hw, resized_hw(original_hw, full_hw), strict=True))
    return max(
        (each for each in _REDUCED_RGB if all(side >= 2 * each * small for side, small in sides)),
        default=1,
    )


def _header_within(data: bytes, max_pixels: int) -> ImageHeader:
    header = read_header(data)
    if header.pixels > max_pixels:
        raise TooLarge(
            f"the image has {header.pixels} pixels ({header.width} x {header.height}); "
            f"max_image_pixels is {max_pixels}",
            code="too_many_pixels",
        )
    if header.jpeg is not None:
        refuse_costly_jpeg(header.jpeg, len(data))
    return header


def _decode_exactly(data: bytes, header: ImageHeader) -> NDArray[np.uint8]:
    # For TIFF, OpenCV turns the image upright whatever the flags, and IMREAD_COLOR would round
    # 16 bits where training cuts them off.
    tiff = header.format == "TIFF"
    pixels = _imdecode(data, header, cv2.IMREAD_UNCHANGED if tiff else cv2.IMREAD_COLOR_RGB)
    if sorted(pixels.shape[:2]) != sorted((header.height, header.width)):
        raise UndecodableImage(f"the {header.format} image is not of the size its header says")
    return _rgb_of_tiff(pixels) if tiff else pixels.astype(np.uint8, copy=False)


def _imdecode(data: bytes, header: ImageHeader, flags: int) -> NDArray[Any]:
    # OpenCV 5 returns None for a file that is cut off anywhere, in all five formats, and turns
    # the image upright.
    if header.format == "PNG":
        data = essential_png(data)
    try:
        with codecs_muted():
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        pixels = None
    if pixels is None:
        raise UndecodableImage(f"the {header.format} image is cut off or corrupt")
    return pixels


def _rgb_of_tiff(pixels: NDArray[np.generic]) -> NDArray[np.uint8]:
    if pixels.dtype == np.uint16:
        pixels = np.right_shift(pixels, 8, out=pixels).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise UndecodableImage(
            f"the TIFF image has {pixels.dtype} samples, served are 8 and 16 bit"
        )
    samples = pixels.astype(np.uint8, copy=False)
    if samples.ndim == 2:
        samples = samples[..., None].repeat(3, axis=2)
        return samples
    if samples.shape[2] not in (3, 4):
        raise UndecodableImage(f"the TIFF image has {samples.shape[2]} samples per pixel")
    return np.ascontiguousarray(samples[..., 2::-1])


def quiet_codecs() -> None:
    """Stops OpenCV from writing lines to stderr for each broken image, for the whole process."""
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def decoding_bytes(data: bytes, header: ImageHeader, reduction: int = 1) -> int:
    """Memory that decoding takes beside the file, at most.

    Args:
        data: the whole file.
        header: of it.
        reduction: 1, 2, 4 or 8: a JPEG is decoded at this part of its size.
    """
    kept = header.coefficient_bytes
    if header.format == "JPEG":
        output = _OUTPUT_BYTES * header.pixels / reduction**2
        # What the scans bring together is kept for all of the image, until the last has come;
        # and where a colour's part is small, the C library keeps it longer.
        needed = output + max(output + min(kept, _SMALL_PARTS_BYTES), kept)
    else:
        needed = _BYTES_A_PIXEL[header.format] * header.pixels + kept
    return int(needed) + _COPIES[header.format] * len(data) + _ROWS_BYTES


def image_bytes(data: bytes, header: ImageHeader) -> int:
    """Memory that it takes at most to decode an image, then draw into it and encode it."""
    drawing = int(_IMAGE_BYTES_A_PIXEL * header.width * header.height) + _ROWS_BYTES
    return max(decoding_bytes(data, header), drawing)


def costliest_bytes(pixels: int) -> int:
    """What an image of so many pixels takes at most that is no file of odd contents."""
    return int(_COSTLIEST_BYTES_A_PIXEL * pixels) + _ROWS_BYTES
