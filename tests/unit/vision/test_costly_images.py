"""Files that would cost far more than their pixels, or lie about them."""

import io
import re
import runpy
import shutil
import struct
import subprocess
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from benchmarks.fuzz.seeds import png_chunk
from server.errors import BadInput, TooLarge, UndecodableImage, UnsupportedImage
from server.vision.decode import decode, read_header
from server.vision.jpeg import refuse_costly_jpeg
from server.vision.png import essential_png
from tests.support.image_files import saved

LIMIT = 50_000_000
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png(
    *before: bytes,
    size: tuple[int, int] = (8, 8),
    data: bytes | None = None,
    after: bytes = b"",
    interlaced: bool = False,
) -> bytes:
    """A black RGB image, with chunks before and after its pixels."""
    width, height = size
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, interlaced)
    pixels = zlib.compress(bytes((3 * width + 1) * height)) if data is None else data
    body = png_chunk(b"IHDR", header) + b"".join(before) + png_chunk(b"IDAT", pixels)
    return SIGNATURE + body + after + png_chunk(b"IEND", b"")


def noise(height: int = 60, width: int = 80, samples: int = 3) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, samples), np.uint8)
    return Image.fromarray(pixels[..., 0] if samples == 1 else pixels)


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP", b"tEXt", b"abCd"])
def test_what_a_png_says_beside_its_pixels_is_not_read(
    kind: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    # A bomb of compressed text: libpng would inflate each of them, and write a line for each iCCP.
    extra = png_chunk(kind, b"k\0\0" + zlib.compress(bytes(7_900_000), 9)) * 900
    data = png(extra, after=extra)
    assert essential_png(data) == png()
    assert decode(data, max_pixels=LIMIT).shape == (8, 8, 3)
    assert capfd.readouterr().err == ""


def test_a_png_with_nothing_to_leave_out_is_not_copied() -> None:
    data = png()
    assert essential_png(data) is data


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "LA", "1"])
def test_a_png_keeps_its_pixels_and_orientation(mode: str) -> None:
    exif = Image.Exif()
    exif[274] = 6
    image = noise(samples=4).convert(mode)
    options = {"transparency": 3} if mode == "P" else {}
    data = saved(image, "PNG", exif=exif, dpi=(72, 72), **options)
    stripped = essential_png(data)
    assert len(stripped) < len(data)
    flags = cv2.IMREAD_COLOR_RGB
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    assert expected is not None
    assert expected.shape == (80, 60, 3)
    np.testing.assert_array_equal(decode(data, max_pixels=LIMIT), expected)


def test_of_an_animation_only_the_default_image_is_left() -> None:
    first = noise()
    data = saved(first, "PNG", save_all=True, append_images=[noise(samples=1).convert("RGB")])
    assert b"fdAT" in data
    stripped = essential_png(data)
    assert b"acTL" not in stripped
    assert b"fdAT" not in stripped
    np.testing.assert_array_equal(decode(data, max_pixels=LIMIT), np.asarray(first))


@pytest.mark.parametrize("interlaced", [False, True])
def test_pixel_data_past_the_last_row_is_refused_before_it_is_inflated(interlaced: bool) -> None:
    bomb = zlib.compressobj(1)
    data = b"".join(bomb.compress(bytes(10**7)) for _ in range(28)) + bomb.flush()
    assert len(data) > 2**20
    with pytest.raises(UndecodableImage, match="far more data than pixels"):
        decode(png(data=data, interlaced=interlaced), max_pixels=LIMIT)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_a_large_png_that_is_checked_is_decoded(mode: str) -> None:
    image = noise(1100, 1200, 4).convert(mode)
    data = saved(image, "PNG")
    assert len(data) > 2**20
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(decode(data, max_pixels=LIMIT), expected)


def test_a_png_of_very_many_chunks_is_refused() -> None:
    data = png(png_chunk(b"IDAT", b"") * 100_001)
    with pytest.raises(UndecodableImage, match="over 100000 chunks"):
        decode(data, max_pixels=LIMIT)


@pytest.mark.parametrize("length", [2**31, 2**32 - 1, 10_000])
def test_a_chunk_that_is_longer_than_its_file_is_refused(length: int) -> None:
    data = png(struct.pack(">I", length) + b"teSt")
    with pytest.raises(UndecodableImage, match="cut off"):
        decode(data, max_pixels=LIMIT)


def with_size(jpeg: bytes, width: int, height: int, marker: int = 0xC0) -> bytes:
    at = jpeg.index(bytes((0xFF, marker)))
    return jpeg[: at + 5] + struct.pack(">HH", height, width) + jpeg[at + 9 :]


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_too_short_for_its_size_is_refused_before_decoding(progressive: bool) -> None:
    data = saved(noise(), "JPEG", progressive=progressive)
    lie = with_size(data, 7000, 7000, 0xC2 if progressive else 0xC0)
    with pytest.raises(UndecodableImage, match=r"cut off: \d+ bytes for 49000000 pixels"):
        decode(lie, max_pixels=LIMIT)
    with pytest.raises(TooLarge):  # the limit is looked at first
        decode(lie, max_pixels=48_999_999)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_the_emptiest_jpeg_is_long_enough_for_its_size(
    mode: str, progressive: bool, subsampling: int
) -> None:
    black = Image.new(mode, (3000, 2000))
    options = {"progressive": progressive, "subsampling": subsampling, "optimize": True}
    data = saved(black, "JPEG", quality=1, **options)
    assert decode(data, max_pixels=LIMIT).shape == (2000, 3000, 3)


def test_a_large_jpeg_may_have_fewer_scans_than_a_small_one() -> None:
    data = saved(Image.new("RGB", (7000, 7000)), "JPEG", progressive=True, quality=30)
    scan = data[data.rfind(b"\xff\xc4", 0, data.rfind(b"\xff\xda")) : -2]
    with pytest.raises(UndecodableImage, match="has 40 scans, the limit at 49000000 pixels is 20"):
        decode(data[:-2] + scan * 30 + data[-2:], max_pixels=LIMIT)


def segment(marker: int, payload: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(payload) + 2) + payload


def before_the_end(jpeg: bytes, *more: bytes) -> bytes:
    assert jpeg.endswith(b"\xff\xd9")
    return jpeg[:-2] + b"".join(more) + jpeg[-2:]


def test_scans_in_a_segment_that_the_decoder_walks_into_are_refused() -> None:
    # The first scan waits for a restart marker, meets 0xFF02, and looks for one inside of it.
    data = saved(noise(), "JPEG", progressive=True)
    first = data.index(b"\xff\xda")
    second = data.index(b"\xff\xc4", first)
    hidden = segment(0xDD, b"\0\0") + data[second:-2]
    head = data[:first] + segment(0xDD, b"\0\1") + data[first : first + 14] + b"\0"
    lie = head + segment(0x02, hidden) + b"\xff\xd9"
    assert cv2.imdecode(np.frombuffer(lie, np.uint8), cv2.IMREAD_COLOR) is not None
    with pytest.raises(UndecodableImage, match="marker 0xFF02"):
        decode(lie, max_pixels=LIMIT)


@pytest.mark.parametrize("marker", [0x02, 0x4F, 0xBF, 0xC8, 0xDE, 0xF0, 0xFD])
@pytest.mark.parametrize("at_start", [False, True])
def test_a_jpeg_marker_that_no_encoder_writes_is_refused(marker: int, at_start: bool) -> None:
    data, odd = saved(noise(), "JPEG"), segment(marker, b"\0\0")
    data = data[:2] + odd + data[2:] if at_start else before_the_end(data, odd)
    with pytest.raises(UndecodableImage, match=f"marker 0xFF{marker:02X}"):
        decode(data, max_pixels=LIMIT)


def test_a_scan_inside_of_a_comment_or_behind_the_end_is_none() -> None:
    data = saved(noise(), "JPEG")
    scan = data[data.index(b"\xff\xda") :]
    comments = before_the_end(data, segment(0xFE, scan * 2) * 200)
    for each in (comments, data + scan * 200, data + segment(0x02, b"")):
        header = read_header(each).jpeg
        assert header is not None
        assert header.scans == 1
        np.testing.assert_array_equal(
            decode(each, max_pixels=LIMIT), decode(data, max_pixels=LIMIT)
        )


@pytest.mark.parametrize(
    ("marker", "name"), [(0xC3, "lossless"), (0xCB, "lossless"), (0xC5, "hier"), (0xCF, "hier")]
)
def test_a_jpeg_of_another_coding_is_refused_before_decoding(marker: int, name: str) -> None:
    data = saved(noise(), "JPEG").replace(b"\xff\xc0", bytes((0xFF, marker)), 1)
    with pytest.raises(UnsupportedImage, match=rf"{name}.* \(SOF{marker - 0xC0}\)"):
        read_header(data)


def test_a_jpeg_of_12_bit_samples_is_refused_before_decoding() -> None:
    data = bytearray(saved(noise(), "JPEG"))
    data[data.index(b"\xff\xc0") + 4] = 12
    with pytest.raises(UnsupportedImage, match="12-bit samples, served are 8 bit"):
        read_header(bytes(data))


@pytest.mark.parametrize("marker", [0xC9, 0xCA])
def test_an_arithmetic_jpeg_too_short_for_its_size_is_refused(marker: int) -> None:
    data = saved(noise(), "JPEG").replace(b"\xff\xc0", bytes((0xFF, marker)), 1)
    with pytest.raises(UndecodableImage, match="cut off"):
        decode(with_size(data, 7000, 7000, marker), max_pixels=LIMIT)


def test_the_scans_of_an_arithmetic_jpeg_are_bounded_by_their_samples() -> None:
    # The decoder does not stop where the bits end: 12 KB of this kind took 3.5 s.
    data = saved(Image.new("RGB", (3000, 2000)), "JPEG", progressive=True, quality=30)
    scan = data[data.rfind(b"\xff\xc4", 0, data.rfind(b"\xff\xda")) : -2]
    huffman = before_the_end(data, scan * 80)
    assert decode(huffman, max_pixels=LIMIT).shape == (2000, 3000, 3)
    arithmetic = huffman.replace(b"\xff\xc2", b"\xff\xca", 1)
    with pytest.raises(UndecodableImage, match=r"arithmetic scans .* the limit is 100000000"):
        decode(arithmetic, max_pixels=LIMIT)


def test_each_scan_of_an_arithmetic_jpeg_needs_its_bytes() -> None:
    data = saved(noise(), "JPEG", progressive=True).replace(b"\xff\xc2", b"\xff\xca", 1)
    scan = data[data.rfind(b"\xff\xda") :][:10]  # its header alone
    once = read_header(with_size(data, 1000, 1000, 0xCA)).jpeg
    often = read_header(before_the_end(with_size(data, 1000, 1000, 0xCA), scan * 60)).jpeg
    assert once is not None
    assert often is not None
    refuse_costly_jpeg(once, 10_000)
    with pytest.raises(UndecodableImage, match="cut off: 10000 bytes"):
        refuse_costly_jpeg(often, 10_000)


def test_an_arithmetic_jpeg_of_the_lowest_frequency_alone_needs_the_bytes_of_an_image() -> None:
    # 1.7 KB took 0.5 s at 50 megapixels: all of it is turned into pixels.
    data = saved(noise(), "JPEG", progressive=True)
    first_scan = data[: data.index(b"\xff\xc4", data.index(b"\xff\xda"))] + b"\xff\xd9"
    lie = with_size(first_scan, 7000, 7000, 0xC2).replace(b"\xff\xc2", b"\xff\xca", 1)
    header = read_header(lie).jpeg
    assert header is not None
    assert header.arithmetic_samples == header.samples // 8
    enough = -(-header.samples // 64 // 64)  # an eighth of a bit a block
    refuse_costly_jpeg(header, enough)
    with pytest.raises(UndecodableImage, match="cut off"):
        refuse_costly_jpeg(header, enough - 1)


def test_a_scan_of_a_part_of_the_spectrum_counts_for_its_part() -> None:
    data = saved(noise(), "JPEG", progressive=True, subsampling=0)
    header = read_header(data.replace(b"\xff\xc2", b"\xff\xca", 1)).jpeg
    assert header is not None
    # Of libjpeg's script for colour: coefficient 0 of all components twice, then the rest of each.
    assert header.scans == 10
    pixels = header.width * header.height
    assert 2 * 3 * pixels / 8 < header.arithmetic_samples < header.scans * 3 * pixels / 2


def test_a_jpeg_of_one_pixel_may_have_odd_sampling_factors() -> None:
    data = bytearray(saved(Image.new("RGB", (1, 1)), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 11], data[frame + 14] = 0x21, 0x12
    header = read_header(bytes(data)).jpeg
    assert header is not None
    assert header.samples == 3


def recoded(jpeg: bytes) -> Iterator[bytes]:
    """The same image in the forms that encoders write."""
    image = Image.open(io.BytesIO(jpeg)).convert("RGB")
    for options in (
        {"progressive": True, "quality": 5},
        {"restart_marker_rows": 1},
        {"progressive": True, "restart_marker_blocks": 3, "quality": 95},
    ):
        yield saved(image, "JPEG", **options)
    pixels = np.asarray(image)[..., ::-1]
    for progressive in (0, 1):
        flags = [cv2.IMWRITE_JPEG_PROGRESSIVE, progressive, cv2.IMWRITE_JPEG_RST_INTERVAL, 5]
        yield cv2.imencode(".jpg", pixels, flags)[1].tobytes()
    if jpegtran := shutil.which("jpegtran"):
        for switches in (["-arithmetic"], ["-arithmetic", "-progressive", "-restart", "2B"]):
            yield subprocess.run([jpegtran, *switches], input=jpeg, capture_output=True).stdout


def test_what_encoders_write_is_decoded(shared_dir: Path) -> None:
    paths = sorted((shared_dir / "datasets" / "photos").rglob("*.jpg"))[::12]
    assert paths
    for path in paths:
        for data in recoded(path.read_bytes()):
            expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
            assert expected is not None
            np.testing.assert_array_equal(decode(data, max_pixels=LIMIT), expected)


@pytest.mark.parametrize("kind", ["hidden_scans", "lossless"])
def test_the_red_teams_files_are_refused(kind: str, shared_dir: Path) -> None:
    path = shared_dir / "hostile" / "jpegs.py"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    made = runpy.run_path(str(path))[kind]
    for side in range(100, 7000, 300):
        with pytest.raises(UndecodableImage if kind == "hidden_scans" else UnsupportedImage):
            decode(made(side, side, 3), max_pixels=LIMIT)


def jpeg_tiff(stream: bytes, *, size: tuple[int, int] = (80, 60), strips: int = 1) -> bytes:
    """A TIFF whose strips are all the same JPEG stream."""
    width, height = size
    at = 8 + 2 + 12 * 10 + 4
    entries = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, at), (259, 3, 1, 7), (262, 3, 1, 6),
        (273, 4, strips, at + 6), (277, 3, 1, 3),
        (278, 4, 1, height // strips),
        (279, 4, strips, at + 6 + 4 * strips if strips > 1 else len(stream)),
        (530, 3, 2, 0x00020002),
    ]  # fmt: skip
    tables = b""
    if strips > 1:
        first = at + 6 + 8 * strips
        tables = struct.pack(f"<{strips}I", *(first + i * len(stream) for i in range(strips)))
        tables += struct.pack("<I", len(stream)) * strips
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    head = struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + directory + bytes(4)
    return head + struct.pack("<HHH", 8, 8, 8) + tables + stream * strips


@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_streams_in_a_tiff_are_decoded(progressive: bool) -> None:
    stream = saved(noise(), "JPEG", progressive=progressive)
    for strips in (1, 3):
        data = jpeg_tiff(stream, size=(80, 60 * strips), strips=strips)
        pixels = decode(data, max_pixels=LIMIT)
        assert pixels.shape == (60 * strips, 80, 3)
    assert (read_header(data).coefficient_bytes > 0) == progressive


def test_jpeg_streams_in_a_tiff_are_refused_as_files_are() -> None:
    data = saved(noise(), "JPEG")
    scan = data[data.index(b"\xff\xda") : -2]
    for stream, match in (
        (before_the_end(data, segment(0x02, b"")), "marker 0xFF02"),
        (data.replace(b"\xff\xc0", b"\xff\xc3", 1), "lossless"),
        (before_the_end(data, scan * 100), "101 scans"),
        (with_size(data, 3000, 3000), "cut off"),
        (data[2:], "TIFF header"),
    ):
        with pytest.raises(BadInput, match=match):
            decode(jpeg_tiff(stream), max_pixels=LIMIT)


def test_a_tiff_of_strips_and_tiles_is_refused() -> None:
    # libtiff reads the later of both, whatever stands in the other.
    harmless = jpeg_tiff(saved(noise(), "JPEG"))
    count = struct.unpack_from("<H", harmless, 8)[0]
    entry = struct.pack("<HHII", 324, 4, 1, 8)
    data = harmless[:8] + struct.pack("<H", count + 1) + harmless[10 : 10 + 12 * count]
    data += entry + harmless[10 + 12 * count :]
    with pytest.raises(UndecodableImage, match="TIFF header"):
        decode(data, max_pixels=LIMIT)


def test_a_jpeg_stream_larger_than_its_strip_counts_with_its_own_pixels() -> None:
    stream = saved(Image.new("RGB", (80, 600)), "JPEG")
    data = jpeg_tiff(stream, size=(80, 60))
    assert read_header(data).pixels == 80 * 600
    with pytest.raises(TooLarge):
        decode(data, max_pixels=80 * 599)


def test_the_segments_of_all_jpeg_streams_in_a_tiff_are_bounded_together() -> None:
    stream = before_the_end(saved(noise(8, 8), "JPEG"), segment(0xFE, b"") * 9_000)
    assert decode(jpeg_tiff(stream, size=(8, 8)), max_pixels=LIMIT).shape == (8, 8, 3)
    with pytest.raises(UndecodableImage, match="TIFF header"):
        read_header(jpeg_tiff(stream, size=(8, 96), strips=12))


def test_the_strips_of_a_tiff_are_read_without_copies() -> None:
    stream = before_the_end(saved(noise(8, 8), "JPEG"), segment(0xFE, bytes(60_000)) * 100)
    data = jpeg_tiff(stream, size=(8, 16), strips=2)
    tracemalloc.start()
    read_header(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < len(stream) // 10


def test_the_scans_of_all_jpeg_streams_in_a_tiff_are_bounded_together() -> None:
    data = saved(Image.new("RGB", (2000, 2000)), "JPEG", progressive=True, quality=30)
    scan = data[data.rfind(b"\xff\xc4", 0, data.rfind(b"\xff\xda")) : -2]
    stream = before_the_end(data, scan * 80)
    many = jpeg_tiff(stream, size=(2000, 10_000), strips=5)
    with pytest.raises(UndecodableImage, match="the limit is 1000000000"):
        decode(many, max_pixels=LIMIT)


@pytest.mark.parametrize(
    ("compression", "name"),
    [("zstd", "Zstandard (50000)"), ("lzma", "LZMA (34925)"), (6, "old-style JPEG (6)")],
)
def test_a_tiff_of_another_compression_is_refused_by_its_name(
    compression: str | int, name: str
) -> None:
    if isinstance(compression, str):
        data = saved(noise(), "TIFF", compression=compression)
    else:
        raw = struct.pack("<HHIHH", 259, 3, 1, 1, 0)
        data = tiff().replace(raw, struct.pack("<HHIHH", 259, 3, 1, compression, 0))
    with pytest.raises(UnsupportedImage, match=re.escape(f"compressed with {name}")):
        decode(data, max_pixels=LIMIT)


def tiff(
    *,
    size: tuple[int, int] = (8, 8),
    sizes: bytes | None = b"",
    strips: int = 1,
    again: int | None = None,
) -> bytes:
    """Grey raw rows in strips that all begin at one place, by default each of 64 bytes."""
    width, height = size
    count = 8 + (sizes is not None) + (again is not None)
    at = 8 + 2 + 12 * count + 4
    offsets = struct.pack("<I", 8) * strips
    sizes = struct.pack("<I", 64) * strips if sizes == b"" else sizes
    entries = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1),
        (277, 3, 1, 1), (278, 4, 1, height // strips),
        (273, 4, strips, at if strips > 1 else 8),
        *([(again, 4, 1, 30_000)] if again else []),
    ]  # fmt: skip
    if sizes is not None:
        first = struct.unpack("<I", sizes[:4])[0]
        entries.append((279, 4, strips, at + len(offsets) if strips > 1 else first))
    directory = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    head = struct.pack("<2sHIH", b"II", 42, 8, count) + directory + bytes(4)
    return head + offsets + (sizes or b"") + bytes(64)


def test_tiff_strips_may_share_a_few_bytes() -> None:
    assert decode(tiff(), max_pixels=LIMIT).shape == (8, 8, 3)
    assert decode(tiff(strips=8), max_pixels=LIMIT).shape == (8, 8, 3)


def test_tiff_strips_that_share_all_their_bytes_are_refused() -> None:
    strips = 10_000
    sizes = struct.pack("<I", 50_000) * strips
    with pytest.raises(UndecodableImage, match="strips or tiles of the TIFF image overlap"):
        decode(tiff(size=(8, strips), strips=strips, sizes=sizes), max_pixels=LIMIT)


def test_many_tiff_strips_of_unknown_size_are_refused() -> None:
    assert decode(tiff(sizes=None), max_pixels=LIMIT).shape == (8, 8, 3)
    with pytest.raises(UndecodableImage, match="overlap"):
        decode(tiff(size=(8, 1000), strips=1000, sizes=None), max_pixels=LIMIT)


@pytest.mark.parametrize("place", [2**31, 2**32 - 1])
def test_tiff_strip_sizes_that_stand_outside_the_file_are_refused(place: int) -> None:
    data = tiff(strips=8)
    entry = data.index(struct.pack("<HHI", 279, 4, 8))
    data = data[: entry + 8] + struct.pack("<I", place) + data[entry + 12 :]
    with pytest.raises(UndecodableImage):
        decode(data, max_pixels=LIMIT)


@pytest.mark.parametrize("kind", [1, 7, 12], ids=["byte", "undefined", "double"])
def test_tiff_tags_that_share_their_bytes_are_refused(kind: int) -> None:
    # libtiff keeps the values of each, also of tags that mean nothing: 20 of 5 MB took 105 MB.
    def with_tags(count: int) -> bytes:
        data = bytearray(saved(Image.new("L", (8, 8)), "TIFF", tiffinfo=text))
        at = data.index(struct.pack("<HH", 65000, 7))
        length, place = struct.unpack_from("<II", data, at + 4)
        (directory,) = struct.unpack_from("<I", data, 4)
        (before,) = struct.unpack_from("<H", data, directory)
        entries = bytes(data[directory + 2 : at])
        width = 8 if kind == 12 else 1
        for tag in range(65000, 65000 + count):
            entries += struct.pack("<HHII", tag, kind, length // width, place)
        # At the end, where there is room for more of them.
        data[4:8] = struct.pack("<I", len(data))
        return bytes(data) + struct.pack("<H", before - 1 + count) + entries + bytes(4)

    text = TiffImagePlugin.ImageFileDirectory_v2()
    text[65000] = bytes(4000)
    text.tagtype[65000] = 7
    assert decode(with_tags(1), max_pixels=LIMIT).shape == (8, 8, 3)
    with pytest.raises(UndecodableImage, match="the values of the TIFF image's tags overlap"):
        decode(with_tags(2), max_pixels=LIMIT)


def tiff_with_tag(tag: int, kind: int, value: int) -> bytes:
    data = tiff()
    at = data.index(struct.pack("<H", tag), 10)
    return data[:at] + struct.pack("<HHII", tag, kind, 1, value) + data[at + 12 :]


# Of a size that stands there twice, which one the decoder would take is not ours to guess.
LYING_TIFFS = {
    **{f"tag {tag} twice": (tiff(again=tag), "TIFF header") for tag in (256, 257, 258, 279)},
    **{f"size of kind {kind}": (tiff_with_tag(256, kind, 8), "TIFF header")
       for kind in (6, 8, 9, 17)},
    "logarithmic colours": (tiff_with_tag(262, 3, 32845), "float samples"),
    **{
        f"BigTIFF offset {offset}": (
            struct.pack("<2sHHHQ", b"II", 43, 8, 0, offset) + bytes(100), "TIFF header",
        )
        for offset in (2**63 - 1, 2**63, 2**64 - 1)
    },
}  # fmt: skip


@pytest.mark.parametrize(("data", "match"), LYING_TIFFS.values(), ids=LYING_TIFFS)
def test_a_tiff_with_a_lie_in_its_header_is_refused_before_decoding(
    data: bytes, match: str
) -> None:
    with pytest.raises(UndecodableImage, match=match):
        read_header(data)


@pytest.mark.parametrize("start", [b"BM", b"II*\0", b"\xff\xd8\xff\xe0"])
def test_a_format_that_is_not_served_does_not_pass_under_another_name(start: bytes) -> None:
    data = bytearray(saved(Image.new("RGB", (2000, 2000)), "AVIF"))
    data[: len(start)] = start
    if start == b"BM":
        data[14:26] = struct.pack("<Iii", 40, 8, 8)
    with pytest.raises(UndecodableImage):
        decode(bytes(data), max_pixels=LIMIT)
