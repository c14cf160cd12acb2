"""Format and size of an image file from its first bytes: nothing is decoded or allocated.

A 68 KB file can declare 33,000 x 33,000 pixels, so the size is looked at before a decoder is.
Each reader finds the frame that the decoder will decode, in the way its decoder finds it.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass

from server.errors import UndecodableImage, UnsupportedImage
from server.vision.jpeg import JpegHeader, read_jpeg
from server.vision.tiff import read_tiff


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What an image file says of itself before any pixel is decoded.

    Attributes:
        format: "JPEG", "PNG", "WEBP", "BMP" or "TIFF".
        width, height: pixels as stored, before EXIF orientation; >= 1.
        pixels: pixels that decoding takes room for; width * height, or what a TIFF's
            tile, or its JPEG streams, have if that is more.
        coefficient_bytes: what a JPEG decoder keeps beside the pixels until the last scan has come.
        jpeg: what only a JPEG file declares; None for the other formats.
    """

    format: str
    width: int
    height: int
    pixels: int
    coefficient_bytes: int = 0
    jpeg: JpegHeader | None = None


def read_header(data: bytes) -> ImageHeader:
    """Reads format and size of the first frame.

    Args:
        data: a whole image file; only its headers are looked at.

    Raises:
        UndecodableImage: `data` is empty, or its headers are cut off or contradict themselves.
        UnsupportedImage: `data` is not a JPEG, PNG, WebP, BMP or TIFF file, or one that is coded
            or compressed in a way that is not served.
    """
    if not data:
        raise UndecodableImage("the image is empty")
    name, read = _recognise(data)
    try:
        header = read(data)
    except (struct.error, IndexError, OverflowError):  # 64-bit offsets overflow
        raise UndecodableImage(f"the {name} header is cut off or corrupt") from None
    if header.width < 1 or header.height < 1:
        raise UndecodableImage(f"the {name} header says {header.width} x {header.height} pixels")
    return header


def _recognise(data: bytes) -> tuple[str, Callable[[bytes], ImageHeader]]:
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


def _jpeg(data: bytes) -> ImageHeader:
    jpeg = read_jpeg(data)
    pixels = jpeg.width * jpeg.height
    return ImageHeader("JPEG", jpeg.width, jpeg.height, pixels, jpeg.coefficient_bytes, jpeg)


def _png(data: bytes) -> ImageHeader:
    if data[12:16] != b"IHDR":
        raise IndexError("the first chunk is not IHDR")
    return _whole("PNG", struct.unpack_from(">II", data, 16))


def _webp(data: bytes) -> ImageHeader:
    chunk = data[12:16]
    if chunk == b"VP8X":  # the canvas, on which frames are put
        low_w, high_w, low_h, high_h = struct.unpack_from("<HBHB", data, 24)
        return _whole("WEBP", ((low_w | high_w << 16) + 1, (low_h | high_h << 16) + 1))
    if chunk == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return _whole("WEBP", ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1))
    if chunk == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return _whole("WEBP", (width & 0x3FFF, height & 0x3FFF))
    raise IndexError("no image chunk")


def _bmp(data: bytes) -> ImageHeader:
    if data[14] == 12:
        return _whole("BMP", struct.unpack_from("<HH", data, 18))
    width, height = struct.unpack_from("<ii", data, 18)
    return _whole("BMP", (width, abs(height)))  # negative: rows from top to bottom


def _tiff(data: bytes) -> ImageHeader:
    tiff = read_tiff(data)
    pixels = max(tiff.width * tiff.height, tiff.tile_pixels, tiff.stream_pixels)
    return ImageHeader("TIFF", tiff.width, tiff.height, pixels, tiff.coefficient_bytes)


def _whole(name: str, size: tuple[int, ...]) -> ImageHeader:
    width, height = size
    return ImageHeader(name, width, height, width * height)
