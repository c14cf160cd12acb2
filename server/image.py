"""From the bytes of an image file to upright RGB pixels, limits first."""

import cv2
import numpy as np
from numpy.typing import NDArray

from server.errors import TooLarge, UndecodableImage
from server.image_header import ImageHeader, read_header

__all__ = ["ImageHeader", "decode", "quiet_codecs", "read_header"]


def decode(data: bytes, *, max_pixels: int) -> NDArray[np.uint8]:
    """Decodes the first frame of an image file.

    Alpha is dropped, of 16 bits the upper 8 are kept, grey and palettes become RGB.

    Args:
        data: a whole JPEG, PNG, WebP, BMP or TIFF file.
        max_pixels: pixels, >= 1; checked before decoding begins.

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
    header = read_header(data)
    if header.pixels > max_pixels:
        raise TooLarge(
            f"the image has {header.pixels} pixels ({header.width} x {header.height}); "
            f"max_image_pixels is {max_pixels}",
            code="too_many_pixels",
        )
    # OpenCV 5 returns None for a file that is cut off anywhere, in all five formats, and turns
    # the picture upright. For TIFF it does so whatever the flags, and IMREAD_COLOR would round
    # 16 bits where training cuts them off.
    flags = cv2.IMREAD_UNCHANGED if header.format == "TIFF" else cv2.IMREAD_COLOR_RGB
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        pixels = None
    if pixels is None:
        raise UndecodableImage(f"the {header.format} image is cut off or corrupt")
    if sorted(pixels.shape[:2]) != sorted((header.height, header.width)):
        raise UndecodableImage(f"the {header.format} image is not of the size its header says")
    return _rgb_of_tiff(pixels) if header.format == "TIFF" else pixels.astype(np.uint8, copy=False)


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
