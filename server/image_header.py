"""Format and size of an image file from its first bytes: nothing is decoded or allocated.

A 68 KB file can declare 33,000 x 33,000 pixels, so the size is looked at before a decoder is.
Each reader finds the frame that the decoder will decode, in the way its decoder finds it.
"""

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from server.errors import UndecodableImage, UnsupportedImage


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What an image file says of itself before any pixel is decoded.

    Attributes:
        format: "JPEG", "PNG", "WEBP", "BMP" or "TIFF".
        width, height: pixels as stored, before EXIF orientation; >= 1.
        pixels: pixels that decoding takes room for; width * height, or a TIFF tile if larger.
    """

    format: str
    width: int
    height: int
    pixels: int


def read_header(data: bytes) -> ImageHeader:
    """Reads format and size of the first frame.

    Args:
        data: a whole image file; only its headers are looked at.

    Raises:
        UndecodableImage: `data` is empty, or its headers are cut off or contradict themselves.
        UnsupportedImage: `data` is not a JPEG, PNG, WebP, BMP or TIFF file.
    """
    if not data:
        raise UndecodableImage("the image is empty")
    name, read = _recognise(data)
    try:
        width, height, *tile = read(data)
    except (struct.error, IndexError):
        raise UndecodableImage(f"the {name} header is cut off or corrupt") from None
    if width < 1 or height < 1:
        raise UndecodableImage(f"the {name} header says {width} x {height} pixels")
    return ImageHeader(name, width, height, max([width * height, *tile]))


def _recognise(data: bytes) -> tuple[str, Callable[[bytes], tuple[int, ...]]]:
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG", _jpeg
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG", _png
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP", _webp
    # "BM" alone may begin any text; the size of the second header is one of a few.
    if data.startswith(b"BM") and data[14:18] in _BMP_HEADER_SIZES:
        return "BMP", _bmp
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF", _tiff
    raise UnsupportedImage("the image is not a JPEG, PNG, WebP, BMP or TIFF file")


_BMP_HEADER_SIZES = frozenset(struct.pack("<I", size) for size in (12, 40, 52, 56, 64, 108, 124))


def _jpeg(data: bytes) -> tuple[int, ...]:
    for marker, position in jpeg_segments(data):
        if marker == START_OF_SCAN:
            break
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            _limit_scans(data)
            height, width = struct.unpack_from(">HH", data, position + 3)
            return width, height
    raise IndexError("no frame header before the pixels")


START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_MAX_SCANS, _MAX_SEGMENTS = 100, 10_000
# 0x00 is a 0xFF among the pixels, 0x01 and 0xD0..0xD8 stand alone, 0xFF is a fill byte.
_SEGMENT_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yields each marker and where its segment starts, up to the end of the first image."""
    position = 2
    for _ in range(_MAX_SEGMENTS):
        match = _SEGMENT_MARKER.search(data, position)
        if match is None or match[1][0] == _END_OF_IMAGE:
            return
        yield match[1][0], match.end()
        position = match.end() + struct.unpack_from(">H", data, match.end())[0]
    raise IndexError("too many segments")


def _limit_scans(data: bytes) -> None:
    """Refuses what no camera writes: each scan of a few bytes costs a pass over all pixels.

    A progressive file of 105 KB with 209 scans took 2.8 s to decode; usual are 10.
    """
    # Most files hold so few of these byte pairs that nothing needs to be walked.
    if data.count(bytes((0xFF, START_OF_SCAN))) > _MAX_SCANS:
        scans = sum(marker == START_OF_SCAN for marker, _ in jpeg_segments(data))
        if scans > _MAX_SCANS:
            raise UndecodableImage(f"the JPEG image has {scans} scans, the limit is {_MAX_SCANS}")


def _png(data: bytes) -> tuple[int, ...]:
    if data[12:16] != b"IHDR":
        raise IndexError("the first chunk is not IHDR")
    return struct.unpack_from(">II", data, 16)


def _webp(data: bytes) -> tuple[int, ...]:
    chunk = data[12:16]
    if chunk == b"VP8X":  # the canvas, on which frames are put
        low_w, high_w, low_h, high_h = struct.unpack_from("<HBHB", data, 24)
        return (low_w | high_w << 16) + 1, (low_h | high_h << 16) + 1
    if chunk == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise IndexError("no image chunk")


def _bmp(data: bytes) -> tuple[int, ...]:
    if data[14] == 12:
        return struct.unpack_from("<HH", data, 18)
    width, height = struct.unpack_from("<ii", data, 18)
    return width, abs(height)  # negative: rows from top to bottom


def _tiff(data: bytes) -> tuple[int, ...]:
    order = "<" if data.startswith(b"II") else ">"
    big = b"+" in data[:4]
    offset: int = struct.unpack_from(f"{order}{'Q' if big else 'I'}", data, 8 if big else 4)[0]
    count: int = struct.unpack_from(f"{order}{'Q' if big else 'H'}", data, offset)[0]
    if count > 0xFFFF:  # what the smaller form can hold
        raise IndexError("too many entries")
    entry_size = 20 if big else 12
    entries = offset + (8 if big else 2)
    values: dict[int, int] = {}
    for position in range(entries, entries + count * entry_size, entry_size):
        tag, kind, length = struct.unpack_from(f"{order}HH{'Q' if big else 'I'}", data, position)
        if tag in _TIFF_TAGS and kind in _TIFF_KINDS:
            at = position + (12 if big else 8)
            if length * struct.calcsize(_TIFF_KINDS[kind]) > (8 if big else 4):  # stands elsewhere
                at = struct.unpack_from(f"{order}{'Q' if big else 'I'}", data, at)[0]
            values.setdefault(tag, struct.unpack_from(order + _TIFF_KINDS[kind], data, at)[0])
    width, height, tile_width, tile_height, bits = (values.get(tag, 0) for tag in _TIFF_TAGS)
    if bits > _TIFF_MAX_BITS:
        raise UndecodableImage(f"the TIFF image has {bits}-bit samples, served are 8 and 16 bit")
    return width, height, tile_width * tile_height


# ImageWidth, ImageLength, TileWidth, TileLength, BitsPerSample
_TIFF_TAGS = (256, 257, 322, 323, 258)
_TIFF_MAX_BITS = 16  # a file of 218 KB and 64-bit samples took 10 s and 3 GB to decode
_TIFF_KINDS = {1: "B", 3: "H", 4: "I", 16: "Q"}  # BYTE, SHORT, LONG, LONG8
