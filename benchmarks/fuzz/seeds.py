"""Small images in every form of file that the server reads: where the fuzzer starts from."""

import base64
import io
import struct
import zlib
from collections.abc import Iterator
from functools import cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Not a multiple of 8, and large enough for decoding at reduced scale into a small input.
WIDTH, HEIGHT = 150, 101
_ORIENTATION = 274  # the EXIF tag
# Written by `jpegtran -arithmetic -progressive -restart 2B`: neither Pillow nor OpenCV can.
_ARITHMETIC = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABQODxIPDRQSEBIXFRQYHjIhHhwcHj0sLiQySUBMS0dARkVQWnNiUFVtVkVG"
    "ZIhlbXd7gYKBTmCNl4x9lnN+gXz/2wBDARUXFx4aHjshITt8U0ZTfHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8"
    "fHx8fHx8fHx8fHx8fHx8fHx8fHz/ygARCAARABgDASIAAhEBAxEB/8wABgAQARD/3QAEAAL/2gAMAwEAAhADEAAAAeMu"
    "MVa8aZz/0Pd0151j1l1A/8wABBAF/9oACAEBAAEFAg45PP/QkCNywP/Riu8Crv/SGf/THXr/zAAEEQX/2gAIAQMBAT8B"
    "E0y+WklA/9AZrLpwmOD/zAAEEQX/2gAIAQIBAT8BpNsrZP/QHVwsff/MAAQQBf/aAAgBAQAGPwJOMP/QwP/RUG+A/9LA"
    "/9PA/8wABBAF/9oACAEBAAE/IZffIzc8/9BZcpLZCP/R75cqNJj/0k+V/9Ol5f/aAAwDAQACAAMAAAAQ8pD/0P8A2P/M"
    "AAQRBf/aAAgBAwEBPxDyzYtB8aUnbDj/0EvKw//MAAQRBf/aAAgBAgEBPxDPTLwhgRJPxhImRv/QWMD/zAAEEAX/2gAI"
    "AQEAAT8QbYT/AEWCEarrCoD/0PR/VisMzi5w/9HXH+FK18Kg/9KuVuKI/9Ol5f/Z"
)


@cache
def seeds() -> tuple[bytes, ...]:
    """The files, always the same; the last ones are `refused_seeds`."""
    return (*_jpegs(), *_pngs(), *_webps(), *_bmps(), *_tiffs(), *refused_seeds())


def refused_seeds() -> tuple[bytes, ...]:
    """Files that the server refuses, each a small step from what it decodes."""
    baseline = _saved(_image(), "JPEG", quality=60)
    progressive = _saved(_image(), "JPEG", quality=60, progressive=True)
    tables_end = baseline.index(b"\xff\xc0")
    first = progressive.index(b"\xff\xda")
    second = progressive.index(b"\xff\xc4", first)
    hidden = _segment(0xDD, b"\0\0") + progressive[second:-2]
    return (
        baseline.replace(b"\xff\xc0", b"\xff\xc3", 1),  # lossless
        baseline[:tables_end] + b"\xff\xd9",  # nothing but tables
        # Scans in a segment that the decoder walks into, as it misses a restart marker.
        progressive[:first]
        + _segment(0xDD, b"\0\1")
        + progressive[first : first + 14]
        + b"\0"
        + _segment(0x02, hidden)
        + b"\xff\xd9",
    )


def _segment(marker: int, payload: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(payload) + 2) + payload


def png_chunk(kind: bytes, payload: bytes) -> bytes:
    """One chunk with its length and checksum."""
    checksum = zlib.crc32(kind + payload)
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", checksum)


def _image() -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    smooth = cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)
    return Image.fromarray(smooth.astype(np.uint8))


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _jpegs() -> Iterator[bytes]:
    image = _image()
    exif = Image.Exif()
    exif[_ORIENTATION] = 6
    yield _saved(image, "JPEG", quality=60)
    yield _saved(image, "JPEG", quality=60, exif=exif, subsampling=0)
    yield _saved(image, "JPEG", quality=60, progressive=True)
    yield _saved(image.convert("L"), "JPEG", quality=60)
    yield _saved(image.convert("CMYK"), "JPEG", quality=60)
    restarts = [cv2.IMWRITE_JPEG_QUALITY, 60, cv2.IMWRITE_JPEG_RST_INTERVAL, 4]
    yield cv2.imencode(".jpg", np.asarray(image), restarts)[1].tobytes()
    yield _saved(image, "JPEG", quality=60).replace(b"\xff\xc0", b"\xff\xc9", 1)  # arithmetic
    yield _ARITHMETIC
    yield _saved(image, "JPEG", quality=60, progressive=True, restart_marker_blocks=3)
    yield _saved(image, "JPEG", quality=60, progressive=True, restart_marker_rows=1)


def _pngs() -> Iterator[bytes]:
    image = _image()
    alpha = image.copy()
    alpha.putalpha(Image.linear_gradient("L").resize(image.size))
    exif = Image.Exif()
    exif[_ORIENTATION] = 8
    for mode in ("1", "L", "P", "RGB"):
        yield _saved(image.convert(mode), "PNG")
    yield _saved(image.quantize(16), "PNG", transparency=3, bits=4)
    yield _saved(alpha, "PNG", exif=exif)
    yield _saved(alpha.convert("LA"), "PNG")
    yield _saved(image, "PNG", save_all=True, append_images=[image.rotate(180)])
    random = np.random.default_rng(1)
    for samples in (1, 3, 4):
        deep = random.integers(0, 2**16, (20, 30, samples)).astype(np.uint16)
        yield cv2.imencode(".png", deep)[1].tobytes()
    text = png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1000)))
    for depth, colour, samples in ((8, 2, 3), (16, 6, 4), (1, 0, 1)):
        yield _interlaced(depth, colour, samples, text)


def _interlaced(depth: int, colour: int, samples: int, extra: bytes) -> bytes:
    """An Adam7 PNG of noise, 30 x 20, which neither Pillow nor OpenCV writes."""
    random = np.random.default_rng(2)
    rows = b""
    for x, y, step_x, step_y in (
        (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
        (0, 1, 1, 2),
    ):  # fmt: skip
        size = -(-len(range(x, 30, step_x)) * samples * depth // 8)
        for _ in range(y, 20, step_y):
            rows += b"\0" + random.bytes(size)
    header = struct.pack(">IIBBBBB", 30, 20, depth, colour, 0, 0, 1)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + extra
        + png_chunk(b"IDAT", zlib.compress(rows))
        + png_chunk(b"IEND", b"")
    )


def _webps() -> Iterator[bytes]:
    image = _image()
    alpha = image.copy()
    alpha.putalpha(Image.linear_gradient("L").resize(image.size))
    exif = Image.Exif()
    exif[_ORIENTATION] = 3
    yield _saved(image, "WEBP", quality=40)
    yield _saved(image, "WEBP", quality=40, exif=exif)
    yield _saved(image, "WEBP", lossless=True)
    yield _saved(alpha, "WEBP", quality=40)
    yield _saved(alpha, "WEBP", lossless=True)
    frames = [image.rotate(90), image.rotate(180)]
    yield _saved(image, "WEBP", quality=40, save_all=True, append_images=frames)
    yield _saved(alpha, "WEBP", lossless=True, save_all=True, append_images=[alpha.rotate(180)])


def _bmps() -> Iterator[bytes]:
    image = _image().resize((40, 30))
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        yield _saved(image.convert(mode), "BMP")
    pixels = b"\x09\x07" * 40 + b"\0\0" + b"\0\3\1\2\3\0" + b"\0\2\1\1" + b"\0\1"  # runs, literals
    head = struct.pack("<2sIHHI", b"BM", 54 + 1024 + len(pixels), 0, 0, 54 + 1024)
    about = struct.pack("<IiiHHIIiiII", 40, 360, 20, 1, 8, 1, len(pixels), 0, 0, 256, 0)
    yield head + about + bytes(1024) + pixels


def _tiffs() -> Iterator[bytes]:
    image = _image().resize((60, 40))
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        yield _saved(image, "TIFF", compression=compression)
    yield _saved(image, "TIFF", compression="tiff_lzw", tiffinfo={317: 2, _ORIENTATION: 5})
    yield _saved(image.convert("1"), "TIFF", compression="group4")
    yield _saved(image.convert("P"), "TIFF", compression="packbits")
    yield _saved(image.convert("CMYK"), "TIFF")
    yield _saved(image.convert("RGBA"), "TIFF", big_tiff=True)
    deep = np.random.default_rng(3).integers(0, 2**16, (40, 48, 3)).astype(np.uint16)
    yield _tiled(deep, 1)
    yield _tiled(deep, 8)
    yield _tiled((deep >> 8).astype(np.uint8), 8)
    # 16-bit sizes of strips in a file that is longer than they count.
    noise = np.random.default_rng(4).integers(0, 256, (80, 300, 3), np.uint8)
    strips = [cv2.IMWRITE_TIFF_ROWSPERSTRIP, 3, cv2.IMWRITE_TIFF_COMPRESSION, 1]
    yield cv2.imencode(".tiff", noise, strips)[1].tobytes()


def _tiled(pixels: NDArray[Any], compression: int) -> bytes:
    """A TIFF of RGB tiles of 16 x 16, which neither Pillow nor OpenCV writes."""
    height, width, _ = pixels.shape
    padded = np.pad(pixels, ((0, -height % 16), (0, -width % 16), (0, 0)))
    tiles = [
        padded[y : y + 16, x : x + 16].tobytes()
        for y in range(0, padded.shape[0], 16)
        for x in range(0, padded.shape[1], 16)
    ]
    if compression == 8:
        tiles = [zlib.compress(tile) for tile in tiles]
    count, bits = len(tiles), pixels.itemsize * 8
    at = 8 + 2 + 12 * 10 + 4
    offsets_at, sizes_at, data_at = at + 6, at + 6 + 4 * count, at + 6 + 8 * count
    offsets = [data_at + sum(map(len, tiles[:i])) for i in range(count)]
    entries = (
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, at), (259, 3, 1, compression),
        (262, 3, 1, 2), (277, 3, 1, 3), (322, 4, 1, 16), (323, 4, 1, 16),
        (324, 4, count, offsets_at), (325, 4, count, sizes_at),
    )  # fmt: skip
    return (
        struct.pack("<2sHIH", b"II", 42, 8, len(entries))
        + b"".join(struct.pack("<HHII", *entry) for entry in entries)
        + bytes(4)
        + struct.pack("<3H", bits, bits, bits)
        + struct.pack(f"<{count}I", *offsets)
        + struct.pack(f"<{count}I", *map(len, tiles))
        + b"".join(tiles)
    )
