import io
import struct
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from server.errors import TooLarge, UndecodableImage, UnsupportedImage
from server.vision.decode import decode, read_header

ORIENTATION = 274  # the EXIF and TIFF tag
LIMIT = 100_000_000
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")


def photo(width: int = 60, height: int = 40) -> Image.Image:
    """A smooth colour image that looks different in each of the eight orientations."""
    coarse = np.random.default_rng(5).integers(0, 256, (4, 5, 3), np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    return Image.fromarray(smooth.astype(np.uint8))


def saved(image: Image.Image, format_: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **({"lossless": True} if format_ == "WEBP" else {}) | options)
    return buffer.getvalue()


def with_alpha(image: Image.Image) -> Image.Image:
    alpha = Image.linear_gradient("L").resize(image.size)
    image = image.copy()
    image.putalpha(alpha)
    return image


def upright(image: Image.Image, orientation: int) -> NDArray[np.uint8]:
    """Pillow's idea of the image; Pillow decodes TIFF upright, so the tag is set afresh."""
    image = Image.fromarray(np.asarray(image.convert("RGB")))
    image.getexif()[ORIENTATION] = orientation
    return np.asarray(ImageOps.exif_transpose(image))


def by_pillow(data: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def tiff(pixels: NDArray[np.uint16], orientation: int = 1, **tags: int) -> bytes:
    """An uncompressed little-endian TIFF of 16-bit grey, RGB or RGBA samples."""
    height, width = pixels.shape[:2]
    samples = 1 if pixels.ndim == 2 else pixels.shape[2]
    short, long = 3, 4
    bits_at = 8 + 2 + 12 * (10 + (samples == 4) + len(tags)) + 4
    strip_at = bits_at + 2 * samples
    entries = [
        (256, long, 1, width),
        (257, long, 1, height),
        (258, short, samples, bits_at if samples > 2 else 16),
        (259, short, 1, 1),
        (262, short, 1, 1 if samples == 1 else 2),
        (273, long, 1, strip_at),
        (ORIENTATION, short, 1, orientation),
        (277, short, 1, samples),
        (278, long, 1, height),
        (279, long, 1, pixels.nbytes),
        *((int(tag[1:]), long, 1, value) for tag, value in tags.items()),
        *([(338, short, 1, 2)] if samples == 4 else []),
    ]
    directory = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return (
        struct.pack("<2sHIH", b"II", 42, 8, len(entries))
        + directory
        + bytes(4)
        + struct.pack("<H", 16) * samples
        + pixels.astype("<u2").tobytes()
    )


@pytest.mark.parametrize("format_", FORMATS)
def test_each_format_decodes_to_the_pixels_that_pillow_sees(format_: str) -> None:
    data = saved(photo(), format_)
    decoded = decode(data, max_pixels=LIMIT)
    assert decoded.dtype == np.uint8
    assert decoded.flags.c_contiguous
    np.testing.assert_array_equal(decoded, by_pillow(data))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(format_: str, orientation: int) -> None:
    image = photo()
    if format_ == "TIFF":
        data = saved(image, format_, tiffinfo={ORIENTATION: orientation})
    else:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        data = saved(image, format_, exif=exif)
    stored = Image.open(io.BytesIO(saved(image, format_)))
    np.testing.assert_array_equal(decode(data, max_pixels=LIMIT), upright(stored, orientation))
    header = read_header(data)
    assert (header.width, header.height) == image.size


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("samples", [1, 3, 4], ids=["grey", "rgb", "rgba"])
def test_a_16_bit_tiff_keeps_its_upper_bytes_upright(samples: int, orientation: int) -> None:
    pixels = np.random.default_rng(1).integers(0, 2**16, (20, 30, samples)).astype(np.uint16)
    pixels = pixels[..., 0] if samples == 1 else pixels
    upper = (pixels >> 8).astype(np.uint8)
    expected = upright(Image.fromarray(upper if samples == 1 else upper[..., :3]), orientation)
    np.testing.assert_array_equal(decode(tiff(pixels, orientation), max_pixels=LIMIT), expected)


@pytest.mark.parametrize("samples", [1, 3, 4], ids=["grey", "rgb", "rgba"])
def test_a_16_bit_png_keeps_its_upper_bytes(samples: int) -> None:
    pixels = np.random.default_rng(1).integers(0, 2**16, (20, 30, samples)).astype(np.uint16)
    bgr = pixels if samples == 1 else pixels[..., [2, 1, 0, 3][:samples]]
    data = cv2.imencode(".png", bgr)[1].tobytes()
    expected = np.broadcast_to(pixels[..., :3] >> 8, (20, 30, 3))
    np.testing.assert_array_equal(decode(data, max_pixels=LIMIT), expected)


@pytest.mark.parametrize(
    ("format_", "convert"),
    [
        *((format_, "L") for format_ in FORMATS),
        *((format_, "1") for format_ in ("PNG", "BMP", "TIFF")),
        *((format_, "P") for format_ in ("PNG", "BMP", "TIFF")),
        *((format_, "LA") for format_ in ("PNG", "WEBP", "TIFF")),
        *((format_, "RGBA") for format_ in ("PNG", "WEBP", "BMP")),
        ("TIFF", "CMYK"),
    ],
)
def test_grey_palettes_alpha_and_cmyk_become_rgb(format_: str, convert: str) -> None:
    image = with_alpha(photo()) if convert in {"LA", "RGBA"} else photo()
    data = saved(image.convert(convert), format_)
    np.testing.assert_array_equal(decode(data, max_pixels=LIMIT), by_pillow(data))


def test_a_cmyk_jpeg_becomes_rgb() -> None:
    data = saved(photo().convert("CMYK"), "JPEG", quality=95)
    np.testing.assert_allclose(
        decode(data, max_pixels=LIMIT).astype(int), by_pillow(data).astype(int), atol=1
    )


@pytest.mark.parametrize("transparency", [3, (1, 2, 3)], ids=["palette", "colour"])
def test_png_transparency_is_dropped(transparency: object) -> None:
    image = photo().quantize(32) if transparency == 3 else photo()
    data = saved(image, "PNG", transparency=transparency)
    np.testing.assert_array_equal(decode(data, max_pixels=LIMIT), by_pillow(data))


@pytest.mark.parametrize("format_", ["PNG", "WEBP", "TIFF"])
def test_of_several_frames_the_first_is_decoded(format_: str) -> None:
    first, second = photo(), ImageOps.invert(photo())
    data = saved(first, format_, save_all=True, append_images=[second])
    np.testing.assert_array_equal(decode(data, max_pixels=LIMIT), np.asarray(first))


FILES: dict[str, Callable[[Image.Image], bytes]] = {
    "jpeg": lambda image: saved(image, "JPEG"),
    "progressive jpeg": lambda image: saved(image, "JPEG", progressive=True),
    "png": lambda image: saved(image, "PNG"),
    "lossless webp": lambda image: saved(image, "WEBP"),
    "webp": lambda image: saved(image, "WEBP", lossless=False),
    "alpha webp": lambda image: saved(with_alpha(image), "WEBP", lossless=False),
    "bmp": lambda image: saved(image, "BMP"),
    "tiff": lambda image: saved(image, "TIFF"),
    "lzw tiff": lambda image: saved(image, "TIFF", compression="tiff_lzw"),
    "deflate tiff": lambda image: saved(image, "TIFF", compression="tiff_adobe_deflate"),
    "jpeg tiff": lambda image: saved(image, "TIFF", compression="jpeg"),
    "16-bit tiff": lambda image: tiff(np.asarray(image).astype(np.uint16) * 257),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_cut_off_anywhere_is_refused(kind: str) -> None:
    data = FILES[kind](photo(200, 150))
    assert decode(data, max_pixels=LIMIT).shape == (150, 200, 3)
    cuts = {18, 20, 30, *np.linspace(40, len(data) - 1, 25).astype(int).tolist(), len(data) - 2}
    for cut in cuts:
        with pytest.raises(UndecodableImage):
            decode(data[:cut], max_pixels=LIMIT)


@pytest.mark.parametrize("kind", ["jpeg", "progressive jpeg", "tiff"])
def test_a_cut_that_is_filled_with_zeros_is_refused(kind: str) -> None:
    data = FILES[kind](photo(200, 150))
    kept = len(data) // 2
    if kind == "tiff":
        kept = 8  # the zeros are where the directory would be
    with pytest.raises(UndecodableImage):
        decode(data[:kept] + bytes(len(data) - kept), max_pixels=LIMIT)


@pytest.mark.parametrize("kind", FILES)
def test_bytes_after_the_end_of_the_file_do_no_harm(kind: str) -> None:
    data = FILES[kind](photo())
    np.testing.assert_array_equal(
        decode(data + b"trailing garbage \xff\xd8\xff", max_pixels=LIMIT),
        decode(data, max_pixels=LIMIT),
    )


def test_a_damaged_png_is_refused() -> None:
    data = bytearray(saved(photo(), "PNG"))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(UndecodableImage):
        decode(bytes(data), max_pixels=LIMIT)


def test_an_empty_body_is_undecodable() -> None:
    with pytest.raises(UndecodableImage, match="empty"):
        decode(b"", max_pixels=LIMIT)


@pytest.mark.parametrize(
    "data",
    [
        b"not an image",
        b"\0",
        b"BMW is a maker of cars and motorcycles",
        b"RIFF\0\0\0\0WAVEfmt ",
        saved(photo().quantize(16), "GIF"),
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"\0\0\0\x0cjP  \r\n\x87\n",
    ],
    ids=["text", "zero", "BM text", "wav", "gif", "svg", "jpeg 2000"],
)
def test_a_format_that_is_not_served_is_unsupported(data: bytes) -> None:
    with pytest.raises(UnsupportedImage):
        decode(data, max_pixels=LIMIT)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_samples_of_over_16_bits_are_refused_before_decoding(mode: str) -> None:
    data = saved(photo().convert(mode), "TIFF")
    with pytest.raises(UndecodableImage, match="32-bit samples, served are 8 and 16 bit"):
        read_header(data)


@pytest.mark.parametrize("bits_kind", [(3, "H"), (4, "I")], ids=["short", "long"])
@pytest.mark.parametrize("samples", [1, 2, 4])
def test_the_bits_of_a_sample_are_found_in_and_outside_the_entry(
    samples: int, bits_kind: tuple[int, str]
) -> None:
    kind, letter = bits_kind
    bits = struct.pack(f"<{samples}{letter}", *[64] * samples)
    value = bits.ljust(4, b"\0") if len(bits) <= 4 else struct.pack("<I", 8 + 2 + 3 * 12)
    entries = [struct.pack("<HHII", tag, 4, 1, 9) for tag in (256, 257)]
    entries.append(struct.pack("<HHI4s", 258, kind, samples, value))
    data = struct.pack("<2sHIH", b"II", 42, 8, 3) + b"".join(entries) + bits
    with pytest.raises(UndecodableImage, match="64-bit samples"):
        read_header(data)


def huge(format_: str) -> bytes:
    """The start of a file that declares 33,000 x 33,000 pixels; the rest of it is missing."""
    side = 33_000
    if format_ == "PNG":
        return b"\x89PNG\r\n\x1a\n" + struct.pack(
            ">I4sIIBBBBB", 13, b"IHDR", side, side, 1, *bytes(4)
        )
    if format_ == "JPEG":
        return b"\xff\xd8\xff\xe0\0\2" + struct.pack(">HHBHH", 0xFFC0, 11, 8, side, side)
    if format_ == "BMP":
        return struct.pack("<2s12xIii", b"BM", 40, side, -side)
    if format_ == "WEBP":  # the two bytes of a lossy frame hold 14 bits; the canvas holds 24
        low, high = (side - 1) & 0xFFFF, (side - 1) >> 16
        return (
            b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0"
            + bytes(4)
            + struct.pack("<HBHB", low, high, low, high)
        )
    return struct.pack("<2sHIHHHIIHHII", b"II", 42, 8, 2, 256, 4, 1, side, 257, 4, 1, side)


@pytest.mark.parametrize("format_", FORMATS)
def test_a_declared_size_over_the_limit_is_refused_before_decoding(format_: str) -> None:
    # There are no pixels to decode: only the header can have said it.
    with pytest.raises(TooLarge, match=r"1089000000 pixels \(33000 x 33000\).*100000000") as caught:
        decode(huge(format_), max_pixels=LIMIT)
    assert caught.value.code == "too_many_pixels"


def test_a_big_tiff_and_a_motorola_tiff_show_their_size() -> None:
    entries = [struct.pack("<HHQQ", tag, 4, 1, value) for tag, value in ((256, 70_000), (257, 9))]
    big = struct.pack("<2sHHHQQ", b"II", 43, 8, 0, 16, 2) + b"".join(entries)
    header = read_header(big)
    assert (header.format, header.width, header.height) == ("TIFF", 70_000, 9)
    entries = [struct.pack(">HHIHH", tag, 3, 1, value, 0) for tag, value in ((256, 300), (257, 9))]
    header = read_header(struct.pack(">2sHIH", b"MM", 42, 8, 2) + b"".join(entries))
    assert (header.width, header.height) == (300, 9)


def test_a_huge_tile_of_a_small_tiff_counts_as_its_size() -> None:
    data = tiff(np.zeros((8, 8), np.uint16), t322=30_000, t323=30_000)
    assert read_header(data).pixels == 900_000_000
    with pytest.raises(TooLarge):
        decode(data, max_pixels=LIMIT)


def test_the_limit_itself_is_allowed() -> None:
    data = saved(photo(60, 40), "PNG")
    assert decode(data, max_pixels=2400).shape == (40, 60, 3)
    with pytest.raises(TooLarge, match="2400 pixels"):
        decode(data, max_pixels=2399)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (257, 3), (255, 256), (5000, 2)])
@pytest.mark.parametrize("kind", FILES)
def test_the_header_says_the_size_that_pillow_reads(kind: str, size: tuple[int, int]) -> None:
    data = FILES[kind](photo(*size))
    header = read_header(data)
    if kind != "16-bit tiff":  # a form that Pillow does not know
        with Image.open(io.BytesIO(data)) as image:
            assert header.format == image.format
    assert (header.width, header.height) == size
    assert decode(data, max_pixels=LIMIT).shape == (size[1], size[0], 3)


def test_a_jpeg_header_is_found_behind_long_segments_and_fill_bytes() -> None:
    plain = saved(photo(), "JPEG")
    # A thumbnail with a frame header of its own, in a comment, and fill bytes before markers.
    thumbnail = saved(photo(9, 7), "JPEG")
    comment = b"\xff\xff\xff\xfe" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    header = read_header(plain[:2] + comment + plain[2:])
    assert (header.width, header.height) == (60, 40)


def repeated_scans(times: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    data = saved(photo(), "JPEG", progressive=True)
    scan = data[data.rfind(b"\xff\xc4", 0, data.rfind(b"\xff\xda")) : -2]
    return data[:-2] + scan * times + data[-2:]


def test_a_jpeg_of_very_many_scans_is_refused_before_decoding() -> None:
    assert decode(repeated_scans(20), max_pixels=LIMIT).shape == (40, 60, 3)
    with pytest.raises(UndecodableImage, match="has 210 scans, the limit at 2400 pixels is 100"):
        decode(repeated_scans(200), max_pixels=LIMIT)


def test_what_looks_like_scans_outside_the_image_is_not_counted() -> None:
    plain = saved(photo(), "JPEG")
    comment = b"\xff\xfe" + struct.pack(">H", 402) + b"\xff\xda" * 200
    for data in (plain[:2] + comment + plain[2:], plain + b"\xff\xda" * 200):
        assert decode(data, max_pixels=LIMIT).shape == (40, 60, 3)


def test_a_jpeg_of_very_many_segments_is_refused() -> None:
    plain = saved(photo(), "JPEG")
    with pytest.raises(UndecodableImage, match="JPEG header"):
        decode(plain[:2] + b"\xff\xfe\0\2" * 20_000 + plain[2:], max_pixels=LIMIT)


@pytest.mark.parametrize("format_", ["PNG", "WEBP", "BMP", "TIFF"])
def test_a_size_of_zero_is_refused(format_: str) -> None:
    if format_ == "WEBP":
        data = b"RIFF\0\0\0\0WEBPVP8 " + bytes(14)
    else:
        data = huge(format_).replace(struct.pack("<I", 33_000), bytes(4))
        data = data.replace(struct.pack(">I", 33_000), bytes(4))
    with pytest.raises(UndecodableImage, match="0 x "):
        decode(data, max_pixels=LIMIT)


def test_any_damage_to_the_first_bytes_is_an_error_of_ours_or_none() -> None:
    random = np.random.default_rng(11)
    for kind in FILES:
        original = FILES[kind](photo())
        for _ in range(60):
            data = bytearray(original)
            for position in random.integers(0, min(300, len(data)), 3):
                data[position] = random.integers(0, 256)
            try:
                decoded = decode(bytes(data), max_pixels=1_000_000)
            except (UndecodableImage, UnsupportedImage, TooLarge):
                continue
            assert decoded.ndim == 3
            assert decoded.shape[2] == 3


@pytest.mark.parametrize("kind", [*FILES, "rgba tiff"])
def test_pixels_equal_those_that_ultralytics_reads(
    kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    patches = pytest.importorskip("ultralytics.utils.patches", reason="ultralytics not installed")
    data = (
        saved(with_alpha(photo()), "TIFF") if kind == "rgba tiff" else FILES[kind](photo(200, 150))
    )
    suffix = read_header(data).format.lower()
    path = tmp_path_factory.mktemp("images") / f"a.{suffix}"
    path.write_bytes(data)
    theirs = patches.imread(str(path))
    np.testing.assert_array_equal(decode(data, max_pixels=LIMIT), theirs[..., ::-1])


def test_a_tiff_longer_than_its_strip_sizes_count_is_read() -> None:
    # 16-bit sizes of strips in a file of over 65,535 bytes: OpenCV writes such ones.
    noise = np.random.default_rng(0).integers(0, 256, (150, 400, 3), np.uint8)
    strips = [cv2.IMWRITE_TIFF_ROWSPERSTRIP, 3, cv2.IMWRITE_TIFF_COMPRESSION, 1]
    data = cv2.imencode(".tiff", noise, strips)[1].tobytes()
    offset = struct.unpack_from("<I", data, 4)[0]
    kinds = {}
    count = struct.unpack_from("<H", data, offset)[0]
    for i in range(count):
        tag, kind = struct.unpack_from("<HH", data, offset + 2 + 12 * i)
        kinds[tag] = kind
    assert len(data) > 0xFFFF
    assert kinds[279] == 3, "the sizes of its strips are not 16-bit"
    np.testing.assert_array_equal(decode(data, max_pixels=LIMIT), noise[..., ::-1])
