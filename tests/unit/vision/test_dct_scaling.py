import struct
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from server.errors import TooLarge, UndecodableImage
from server.vision.decode import decode, decode_dct_scaled
from server.vision.jpeg import read_jpeg
from server.vision.letterbox import Frame, letterbox, resized_hw
from tests.support.image_files import saved

LIMIT = 100_000_000
INPUT = (64, 64)
SIZES = [(1036, 1555), (1041, 1560), (520, 1029), (2048, 1024), (259, 263), (300, 301)]


def jpeg(pixels: NDArray[np.uint8], orientation: int | None = None, **options: object) -> bytes:
    exif = Image.Exif()
    if orientation is not None:
        exif[274] = orientation
    image = Image.fromarray(pixels)
    return saved(image, "JPEG", quality=95, subsampling=0, exif=exif, **options)


def rectangle(height: int, width: int) -> NDArray[np.uint8]:
    """White on black, nearer to one corner than to the others."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[height // 9 : height // 2, width // 7 : width // 3] = 255
    return pixels


def edges(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The (x1, y1, x2, y2) of a white rectangle on black, to a fraction of a pixel."""
    found = []
    for axis in (0, 1):
        profile = pixels[..., 0].mean(axis=axis)
        profile = np.where(profile > 0.05 * profile.max(), profile, 0) / profile.max()
        centre = (profile * (np.arange(len(profile)) + 0.5)).sum() / profile.sum()
        found.append((centre - profile.sum() / 2, centre + profile.sum() / 2))
    (x1, x2), (y1, y2) = found
    return np.array([x1, y1, x2, y2])


@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
@pytest.mark.parametrize("size", SIZES)
def test_the_reduced_image_lies_where_its_frame_says(
    size: tuple[int, int], orientation: int | None
) -> None:
    data = jpeg(rectangle(*size), orientation)
    upright = decode(data, max_pixels=LIMIT)
    reduced, frame = decode_dct_scaled(data, max_pixels=LIMIT, full_hw=INPUT)
    assert frame.original_hw == upright.shape[:2]
    reduction = frame.covered_hw[0] // reduced.shape[0]
    assert reduction in (2, 4, 8)
    assert frame.covered_hw == (reduced.shape[0] * reduction, reduced.shape[1] * reduction)
    before = np.array([*frame.before_hw[::-1]] * 2)
    np.testing.assert_allclose(edges(reduced) * reduction - before, edges(upright), atol=0.4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_return_to_the_upright_original_from_either_decoding(orientation: int) -> None:
    # Reduced by 4, of which neither side is a multiple.
    data = jpeg(rectangle(1041, 1563), orientation)
    full_hw = (160, 160)
    upright = decode(data, max_pixels=LIMIT)
    reduced, frame = decode_dct_scaled(data, max_pixels=LIMIT, full_hw=full_hw)
    assert reduced.shape != upright.shape
    boxes = []
    for image, its_frame in ((upright, None), (reduced, frame)):
        canvas, placed = letterbox(image, full_hw, frame=its_frame)
        assert placed.original_hw == upright.shape[:2]
        assert placed.resized_hw == resized_hw(placed.original_hw, full_hw)
        white = np.where(canvas == 114, 0, canvas).astype(np.uint8)
        boxes.append(placed.to_original(edges(white).astype(np.float32)[None])[0])
    # A tenth of a pixel of the input, which is 10 of these wide; bilinear sampling is that fine.
    np.testing.assert_allclose(boxes[1], boxes[0], atol=4)
    np.testing.assert_allclose(boxes[1], edges(upright), atol=4)


def test_the_corners_of_the_original_are_exact_in_a_reduced_frame() -> None:
    frame = Frame((1041, 1563), (1044, 1568), (3, 0))
    _, placed = letterbox(np.zeros((261, 392, 3), np.uint8), (160, 160), frame=frame)
    left, top = placed.pad_left, placed.pad_top
    height, width = placed.resized_hw
    x2, y1 = left + width * 1563 / 1568, top + height * 3 / 1044
    box = np.array([[left, y1, x2, top + height]], np.float32)
    np.testing.assert_allclose(placed.to_original(box), [[0, 0, 1563, 1041]], atol=1e-3)


@pytest.mark.parametrize("side", range(120, 1100, 49))
def test_twice_the_size_in_the_input_is_left_and_no_more_than_needed(side: int) -> None:
    data = jpeg(rectangle(side, side * 3 // 2))
    reduced, frame = decode_dct_scaled(data, max_pixels=LIMIT, full_hw=INPUT)
    needed = [2 * each for each in resized_hw(frame.original_hw, INPUT)]
    reduction = frame.covered_hw[0] // reduced.shape[0]
    if reduction > 1:
        assert all(have >= need for have, need in zip(reduced.shape, needed, strict=False))
    if reduction < 8:  # the next would be too much
        assert frame.original_hw[0] < 2 * reduction * needed[0] or (
            frame.original_hw[1] < 2 * reduction * needed[1]
        )


@pytest.mark.parametrize("suffix", [".png", ".webp", ".bmp", ".tif"])
def test_other_formats_are_decoded_exactly(suffix: str) -> None:
    data = cv2.imencode(suffix, rectangle(600, 900))[1].tobytes()
    pixels, frame = decode_dct_scaled(data, max_pixels=LIMIT, full_hw=INPUT)
    np.testing.assert_array_equal(pixels, decode(data, max_pixels=LIMIT))
    assert frame == Frame((600, 900), (600, 900))


def test_a_small_jpeg_is_decoded_exactly() -> None:
    data = jpeg(rectangle(200, 250))
    pixels, frame = decode_dct_scaled(data, max_pixels=LIMIT, full_hw=INPUT)
    np.testing.assert_array_equal(pixels, decode(data, max_pixels=LIMIT))
    assert frame == Frame((200, 250), (200, 250))


def twice(exif: bytes) -> bytes:
    return exif * 2


@pytest.mark.parametrize(
    "change",
    [
        twice,
        lambda exif: exif.replace(b"\x12\x01\x03\0", b"\x12\x01\x04\0").replace(
            b"\x01\x12\0\x03", b"\x01\x12\0\x04"
        ),
        lambda exif: exif.replace(b"MM\0*", b"MM\0+").replace(b"II*\0", b"II+\0"),
        lambda exif: exif.replace(b"MM\0*\0\0\0\x08", b"MM\0*\0\1\0\x08").replace(
            b"II*\0\x08\0\0\0", b"II*\0\x08\0\1\0"
        ),
    ],
    ids=["two blocks", "an odd kind", "no TIFF", "an offset past the end"],
)
def test_an_odd_exif_block_means_exact_decoding(change: Callable[[bytes], bytes]) -> None:
    plain = jpeg(rectangle(1000, 1500), 6)
    start = plain.index(b"\xff\xe1")
    end = start + 2 + int.from_bytes(plain[start + 2 : start + 4], "big")
    data = plain[:start] + change(plain[start:end]) + plain[end:]
    assert data != plain
    assert read_jpeg(data).orientation is None
    pixels, frame = decode_dct_scaled(data, max_pixels=LIMIT, full_hw=INPUT)
    np.testing.assert_array_equal(pixels, decode(data, max_pixels=LIMIT))
    assert frame == Frame.whole(pixels)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_read_in_both_byte_orders(order: str, orientation: int) -> None:
    mark = b"II" if order == "<" else b"MM"
    entries = struct.pack(f"{order}HHIHH", 256, 3, 1, 9, 0)
    entries += struct.pack(f"{order}HHIHH", 274, 3, 1, orientation, 0)
    tiff = mark + struct.pack(f"{order}HIH", 42, 8, 2) + entries + bytes(4)
    data = saved(Image.fromarray(rectangle(20, 30)), "JPEG", exif=b"Exif\0\0" + tiff)
    assert read_jpeg(data).orientation == orientation
    assert decode(data, max_pixels=LIMIT).shape[:2] == ((20, 30) if orientation < 5 else (30, 20))


@pytest.mark.parametrize("rest", [b"\xff\xe1", b"\xff\xe1\0", b"\xff\xda"])
def test_a_file_that_ends_in_a_segment_before_its_pixels_is_refused(rest: bytes) -> None:
    data = jpeg(rectangle(1000, 1500))
    before_tables = data[: data.index(b"\xff\xc4")] + rest
    with pytest.raises(UndecodableImage):
        decode_dct_scaled(before_tables, max_pixels=LIMIT, full_hw=INPUT)


def test_no_orientation_is_upright() -> None:
    assert read_jpeg(jpeg(rectangle(9, 9))).orientation == 1
    exif = Image.Exif()
    exif[270] = "a description"
    data = saved(Image.fromarray(rectangle(9, 9)), "JPEG", exif=exif)
    assert read_jpeg(data).orientation == 1


def test_grey_cmyk_and_progressive_files_are_reduced_to_rgb() -> None:
    image = Image.fromarray(rectangle(600, 900))
    for mode, options in (("L", {}), ("CMYK", {}), ("RGB", {"progressive": True})):
        data = saved(image.convert(mode), "JPEG", quality=95, **options)
        pixels, _ = decode_dct_scaled(data, max_pixels=LIMIT, full_hw=INPUT)
        assert pixels.shape == (150, 225, 3)
        np.testing.assert_allclose(edges(pixels) * 4, edges(rectangle(600, 900)), atol=0.5)


def test_limits_hold_at_reduced_scale() -> None:
    data = jpeg(rectangle(1000, 1500))
    with pytest.raises(TooLarge, match="1500000 pixels"):
        decode_dct_scaled(data, max_pixels=1_499_999, full_hw=INPUT)
    for cut in (len(data) // 2, len(data) - 2):
        with pytest.raises(UndecodableImage):
            decode_dct_scaled(data[:cut], max_pixels=LIMIT, full_hw=INPUT)
