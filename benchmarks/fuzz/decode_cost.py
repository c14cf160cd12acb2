"""What the costliest images that are accepted cost: CPU and memory for what was sent.

    python -m benchmarks.fuzz.decode_cost --output docs/evidence/decode-cost.md

For each format, images are made that declare the most pixels in the fewest bytes, or take the most
passes over them, at the default `max_image_pixels`. Each goes the server's way from bytes to a
letterboxed canvas in a process of its own.
"""

import argparse
import base64
import io
import json
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from benchmarks.fuzz.images import small_metadata
from benchmarks.fuzz.seeds import png_chunk
from server.host import return_large_blocks
from server.inference.detector import prepare_encoded
from server.settings import Settings
from server.vision.decode import quiet_codecs

LIMITS = Settings.model_fields
MAX_PIXELS: int = LIMITS["max_image_pixels"].default
MAX_REQUEST_PIXELS: int = LIMITS["max_request_pixels"].default
MAX_BODY_BYTES: int = LIMITS["max_body_bytes"].default
SIDE = int(MAX_PIXELS**0.5)
# Scans of a small image by `jpegtran -arithmetic`, the second one cut off: all its coefficients
# differ from 0, and past the end the decoder goes on to expect that.
_FIRST_SCAN = base64.b64decode(
    "/8wABAAQ/9oACAEBAAAAAIEJzkQo/F7d6enuJbkI3ncC1RahlvkkNfpVo+KDETWqXB4H0/pJ3EmWmuR5u1vfCXEY"
    "M/yOvThbJKIJBxWYv/7SvcDV8ZAgTEgRJUhMt2O94xlnygiW8FDxOSRCCNvdNImUMkg2oE0zX7JE0fvKO1Pczw=="
)
_TRAINED_SCAN = base64.b64decode(
    "/8wABBAF/9oACAEBAAE/ASeNJ9bvHv5mZmY2g/1vHC17aG+5KqrXuSrVFXuSfZ75Dv4Sqob49dO5xsiuJk9ncjYu"
    "OFhAA1eQNmO80uE8h6vfc+RjVvs9QjI7i3kAMYj7B42oKw=="
)


@dataclass(frozen=True, slots=True)
class Cost:
    """What one image cost.

    Attributes:
        name: how it was made.
        kb: its length, in 1,024 bytes.
        cpu_s: CPU seconds from bytes to canvas.
        mb: by how much the process' peak memory grew, in 2**20 bytes.
        pixels: what its header declares.
    """

    name: str
    kb: float
    cpu_s: float
    mb: float
    pixels: int


def images() -> Iterator[tuple[str, bytes]]:
    """The images and how each was made; all are accepted."""
    black = Image.new("RGB", (SIDE, SIDE))
    noise = np.random.default_rng(0).integers(0, 256, (2500, 2500, 3), np.uint8)
    flat = {"quality": 1, "subsampling": 2, "optimize": True}
    progressive = _saved(black, "JPEG", progressive=True, **flat)
    yield "JPEG, baseline, one colour", _saved(black, "JPEG", **flat)
    yield "JPEG, progressive, one colour", progressive
    yield "JPEG, progressive, 20 scans", _more_scans(progressive, 20)
    dense = Image.fromarray(noise[:1400, :1400])
    scans = _saved(dense, "JPEG", progressive=True, quality=75)
    yield "JPEG, progressive, noise, 100 scans", _more_scans(scans, 100)
    yield "JPEG, arithmetic, lowest frequency alone", _arithmetic(SIDE, SIDE, 0)
    yield "JPEG, arithmetic, one scan cut off", _arithmetic(SIDE, SIDE, 1)
    yield "JPEG, arithmetic, nine scans cut off", _arithmetic(3162, 3162, 9)
    yield "JPEG, noise, 4:4:4", _saved(Image.fromarray(noise), "JPEG", quality=100, subsampling=0)
    yield "PNG, 1 bit", _png(1, 0, SIDE // 8 + 1)
    yield "PNG, RGB", _png(8, 2, 3 * SIDE)
    yield "PNG, RGBA, 16 bit", _png(16, 6, 8 * SIDE)
    yield "PNG, noise", _saved(Image.fromarray(noise), "PNG")
    wide = black.resize((16_383, MAX_PIXELS // 16_383))
    yield "WebP, lossless, one colour", _saved(wide, "WEBP", lossless=True)
    yield "WebP, lossy, one colour", _saved(wide, "WEBP", quality=0)
    yield "WebP, lossless, noise", _saved(Image.fromarray(noise), "WEBP", lossless=True, quality=0)
    yield "BMP, nothing but its end", _bmp()
    for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        yield f"TIFF, {name.removeprefix('tiff_')}", _saved(black, "TIFF", compression=name)
    yield "TIFF, group4", _saved(black.convert("1"), "TIFF", compression="group4")
    deep = np.zeros((SIDE, SIDE, 4), np.uint16)
    deflate = [cv2.IMWRITE_TIFF_COMPRESSION, 8]
    yield "TIFF, deflate, RGBA, 16 bit", cv2.imencode(".tiff", deep, deflate)[1].tobytes()


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _more_scans(progressive: bytes, scans: int) -> bytes:
    """Repeats the last scan, as a decoder does not object to."""
    last = progressive[progressive.rfind(b"\xff\xc4", 0, progressive.rfind(b"\xff\xda")) : -2]
    return progressive[:-2] + last * (scans - progressive.count(b"\xff\xda")) + b"\xff\xd9"


def _arithmetic(width: int, height: int, scans: int) -> bytes:
    """Grey, of as few bytes as are accepted for so many scans."""
    frame = struct.pack(">BHHB", 8, height, width, 1) + b"\1\x11\0"
    data = b"\xff\xd8" + _segment(0xDB, b"\0" + b"\1" * 64) + _segment(0xCA, frame)
    data += _FIRST_SCAN + _TRAINED_SCAN * scans
    # An eighth of a bit a block, for the first scan an eighth of that, and once at least.
    blocks = width * height // 64 * max(1.0, scans + 1 / 8)
    missing = int(blocks / 8 / 8) + 64 - len(data)
    while missing > 0:
        data += _segment(0xFE, bytes(min(missing, 65_000)))
        missing -= 65_000
    return data + b"\xff\xd9"


def _segment(marker: int, payload: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(payload) + 2) + payload


def _png(bits: int, colour: int, row_bytes: int) -> bytes:
    header = struct.pack(">IIBBBBB", SIDE, SIDE, bits, colour, 0, 0, 0)
    rows = zlib.compress(bytes((row_bytes + 1) * SIDE), 9)
    parts = (b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*part) for part in parts)


def _bmp() -> bytes:
    head = struct.pack("<2sIHHI", b"BM", 54 + 1024 + 2, 0, 0, 54 + 1024)
    about = struct.pack("<IiiHHIIiiII", 40, SIDE, SIDE, 1, 8, 1, 2, 0, 0, 256, 0)
    return head + about + bytes(1024) + b"\0\1"


def measure(path: Path) -> dict[str, float]:
    """Takes one file the server's way; to be run in a process of its own."""
    quiet_codecs()
    cv2.setNumThreads(1)
    return_large_blocks()
    metadata, data = small_metadata(), path.read_bytes()
    small = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    prepare_encoded(small, metadata, max_pixels=MAX_PIXELS, dct_scaling=True)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _peak_kb()
    started = time.process_time()
    prepared, _ = prepare_encoded(data, metadata, max_pixels=MAX_PIXELS, dct_scaling=False)
    cpu_s = time.process_time() - started
    height, width = prepared.placed.original_hw
    return {"cpu_s": cpu_s, "mb": (_peak_kb() - before) / 1024, "pixels": height * width}


def _peak_kb() -> int:
    # Not getrusage: its peak begins with what the parent had.
    status = Path("/proc/self/status").read_text()
    (line,) = (each for each in status.splitlines() if each.startswith("VmHWM"))
    return int(line.split()[1])


def measured(name: str, data: bytes) -> Cost:
    """The cost of an image, by the median of three runs."""
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(data)
        command = [sys.executable, "-m", "benchmarks.fuzz.decode_cost", "--measure", file.name]
        runs = [
            json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            for _ in range(3)
        ]
    median = sorted(runs, key=lambda run: run["cpu_s"])[1]
    return Cost(name, len(data) / 1024, median["cpu_s"], median["mb"], int(median["pixels"]))


def in_a_request(cost: Cost) -> float:
    """How many such images the default limits of a request allow."""
    return min(MAX_REQUEST_PIXELS / cost.pixels, MAX_BODY_BYTES / (1024 * cost.kb))


def page(costs: list[Cost]) -> str:
    """The table, as Markdown."""
    rows = [
        f"| {cost.name} | {cost.kb:,.1f} | {cost.pixels / 1e6:.0f} | {cost.cpu_s:.2f} | "
        f"{cost.mb:.0f} | {cost.cpu_s / cost.kb:.4f} | {cost.mb / cost.kb:.2f} | "
        f"{cost.cpu_s * in_a_request(cost):.1f} |"
        for cost in costs
    ]
    return "\n".join(
        [
            "# What the costliest images cost",
            "",
            "Written by `python -m benchmarks.fuzz.decode_cost`. Images that are accepted, and "
            "declare the most pixels in the fewest bytes or take the",
            f"most passes over them, at the default `max_image_pixels` ({MAX_PIXELS:,}). The last "
            "column is a request of as many of them as the",
            f"defaults of `max_request_pixels` ({MAX_REQUEST_PIXELS:,}) and `max_body_bytes` "
            "allow; its images are decoded on `decode_threads` threads, within the",
            "memory for decoding.",
            "",
            "| image | KB sent | megapixels | CPU s | MB | CPU s per KB | MB per KB | CPU s per "
            "request |",
            "|---|---:|---:|---:|---:|---:|---:|---:|",
            *rows,
            "",
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    """Measures and writes the page; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz.decode_cost")
    parser.add_argument("--output", type=Path, help="the page to write; else it is printed")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return 0
    text = page([measured(name, data) for name, data in images()])
    if options.output:
        options.output.write_text(text)
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
