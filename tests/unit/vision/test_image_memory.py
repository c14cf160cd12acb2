"""No image takes more memory to decode than its header made us expect."""

import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from benchmarks.fuzz.seeds import png_chunk
from server.errors import UndecodableImage
from server.vision.decode import decode, read_header
from tests.support.image_files import saved

HEIGHT, WIDTH = 1500, 2000
FULL_HW = (480, 480)  # so that a JPEG is decoded at half its size
# Decodes each file alone, and prints what was expected and by how much the process grew.
MEASURE = """
import json, sys
from pathlib import Path
import cv2, numpy as np
from server.vision.annotate import annotate
from server.api.responses import annotated_image
from server.api.body import Upload
from server.inference.detector import ImageDetections
from server.vision.decode import decode, decode_dct_scaled, quiet_codecs, read_header
from server.vision.decode import image_bytes
from server.host import resident_bytes, return_freed_memory, return_large_blocks
from server.vision.nms import Detections

def peak_bytes():
    status = Path("/proc/self/status").read_text()
    (line,) = (each for each in status.splitlines() if each.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

def measured(work):
    return_freed_memory()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident_bytes()
    work()
    return peak_bytes() - before

def drawn(data):
    header = read_header(data)
    expected.append(image_bytes(data, header))
    found = Detections(np.ones((1, 4), np.float32), np.ones(1, np.float32), np.zeros(1, int))
    found = ImageDetections(found, header.width, header.height, False)
    annotated_image(Upload("x", data), found, ["x"], 10**9, True)

def reduced(data):
    decode_dct_scaled(data, max_pixels=10**9, full_hw=FULL, require=expected.append)

def exact(data):
    decode(data, max_pixels=10**9, require=expected.append)

cv2.setNumThreads(1)
quiet_codecs()
return_large_blocks()
FULL = tuple(json.loads(sys.argv[2]))
ways = {"exact": exact, "reduced": reduced, "drawn": drawn}
small = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
for way in ways.values():  # what the libraries allocate once
    expected = []
    way(small)
results = {}
for path in sorted(Path(sys.argv[1]).iterdir()):
    data = path.read_bytes()
    expected = []
    took = measured(lambda: ways[path.suffix[1:]](data))
    results[path.name] = (max(expected), took)
print(json.dumps(results))
"""


def noise(samples: int, kind: type[np.unsignedinteger] = np.uint8) -> NDArray[np.unsignedinteger]:
    shape = (HEIGHT, WIDTH) if samples == 1 else (HEIGHT, WIDTH, samples)
    return np.random.default_rng(0).integers(0, np.iinfo(kind).max + 1, shape, kind)


def pillow(kind: str, mode: str, *, turned: bool = False, **options: object) -> bytes:
    exif = Image.Exif()
    if turned:
        exif[274] = 6
    return saved(Image.fromarray(noise(3)).convert(mode), kind, exif=exif, **options)


def opencv(extension: str, samples: int, *options: int, bits: int = 8) -> bytes:
    pixels = noise(samples, np.uint8 if bits == 8 else np.uint16)
    return cv2.imencode(extension, pixels, options)[1].tobytes()


def interlaced_png() -> bytes:
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 6, 0, 0, 1)
    rows = zlib.compress(bytes(WIDTH * HEIGHT * 8 + 4 * HEIGHT), 1)
    parts = (b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*part) for part in parts)


TEXT = bytes(12_000_000)  # what a file may bring beside its pixels


def png_of_empty_blocks() -> bytes:
    """8 x 8 pixels in one large chunk that inflates to hardly anything, and one to leave out."""
    header = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    rows = b"\x78\x01" + b"\0\0\0\xff\xff" * 2_400_000 + zlib.compress(bytes(8 * 25))[2:]
    parts = (b"IHDR", header), (b"tEXt", b"a\0b"), (b"IDAT", rows), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*part) for part in parts)


def jpeg_with_texts() -> bytes:
    text = struct.pack(">BBH", 0xFF, 0xE1, 60_000) + bytes(59_998)
    return jpeg()[:2] + text * (len(TEXT) // len(text)) + jpeg()[2:]


def webp_with_exif() -> bytes:
    data = pillow("WEBP", "RGB", method=0, turned=True)
    at = data.index(b"EXIF")
    body = data[8:at] + b"EXIF" + struct.pack("<I", len(TEXT)) + TEXT
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tiff_with_profile() -> bytes:
    return saved(Image.new("RGB", (8, 8)), "TIFF", icc_profile=TEXT)


def tiff_of_one_tile() -> bytes:
    """16 x 16 pixels in a tile of many."""
    width, height = WIDTH, HEIGHT // 16 * 16
    tile = zlib.compress(bytes(3 * width * height))
    entries = (
        (256, 16), (257, 16), (258, 8), (259, 8), (262, 2), (277, 3), (322, width), (323, height),
        (324, 8), (325, len(tile)),
    )  # fmt: skip
    directory = struct.pack("<H", len(entries))
    directory += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return struct.pack("<2sHI", b"II", 42, 8 + len(tile)) + tile + directory + bytes(4)


ONE_STRIP = (cv2.IMWRITE_TIFF_COMPRESSION, 1, cv2.IMWRITE_TIFF_ROWSPERSTRIP, HEIGHT)
IMAGES: dict[str, Callable[[], bytes]] = {
    "baseline": lambda: pillow("JPEG", "RGB"),
    "baseline turned": lambda: pillow("JPEG", "RGB", turned=True),
    "baseline grey": lambda: pillow("JPEG", "L"),
    "baseline cmyk": lambda: pillow("JPEG", "CMYK"),
    "progressive": lambda: pillow("JPEG", "RGB", progressive=True),
    "progressive full colour": lambda: pillow("JPEG", "RGB", progressive=True, subsampling=0),
    "progressive turned": lambda: pillow(
        "JPEG", "RGB", progressive=True, subsampling=0, turned=True
    ),
    "progressive cmyk": lambda: pillow("JPEG", "CMYK", progressive=True),
    "png": lambda: pillow("PNG", "RGB", compress_level=1),
    "png turned": lambda: pillow("PNG", "RGB", compress_level=1, turned=True, dpi=(9, 9)),
    "png palette": lambda: pillow("PNG", "P", compress_level=1),
    "png 16 alpha": lambda: opencv(".png", 4, cv2.IMWRITE_PNG_COMPRESSION, 1, bits=16),
    "png 16 alpha interlaced": interlaced_png,
    "bmp": lambda: opencv(".bmp", 3),
    "bmp alpha": lambda: opencv(".bmp", 4),
    "webp": lambda: pillow("WEBP", "RGB", method=0),
    "webp alpha lossless": lambda: pillow("WEBP", "RGBA", lossless=True, method=0, quality=0),
    "webp animated": lambda: pillow(
        "WEBP", "RGB", save_all=True, append_images=[Image.new("RGB", (WIDTH, HEIGHT))], method=0
    ),
    "tiff": lambda: opencv(".tiff", 3, *ONE_STRIP),
    "tiff grey": lambda: opencv(".tiff", 1),
    "tiff alpha": lambda: opencv(".tiff", 4, *ONE_STRIP),
    "tiff turned": lambda: pillow("TIFF", "RGB", turned=True),
    "tiff 16": lambda: opencv(".tiff", 3, bits=16),
    "tiff 16 alpha": lambda: opencv(".tiff", 4, *ONE_STRIP, bits=16),
    "tiff cmyk": lambda: pillow("TIFF", "CMYK"),
    "tiff 16 alpha in one strip": lambda: opencv(
        ".tiff", 4, cv2.IMWRITE_TIFF_COMPRESSION, 5, *ONE_STRIP[2:], bits=16
    ),
    "tiff of one tile": tiff_of_one_tile,
    "tiff with a profile": tiff_with_profile,
    "jpeg with texts": jpeg_with_texts,
    "webp with exif": webp_with_exif,
    "png of empty blocks": png_of_empty_blocks,
}  # fmt: skip

DRAWN = {
    "baseline turned", "progressive turned", "png turned", "webp animated", "tiff 16 alpha",
    "tiff of one tile", "png of empty blocks", "jpeg with texts",
}  # fmt: skip


@pytest.mark.slow
def test_no_image_takes_more_memory_than_was_expected(repo_dir: Path, tmp_path: Path) -> None:
    for name, make in IMAGES.items():
        data = make()
        for way in ("exact", "reduced", "drawn") if name in DRAWN else ("exact", "reduced"):
            (tmp_path / f"{name}.{way}").write_bytes(data)
    command = [sys.executable, "-c", MEASURE, str(tmp_path), json.dumps(FULL_HW)]
    done = subprocess.run(command, cwd=repo_dir, capture_output=True, text=True, check=True)
    results: dict[str, tuple[int, int]] = json.loads(done.stdout)
    assert len(results) == 2 * len(IMAGES) + len(DRAWN)
    over = {name: pair for name, pair in results.items() if pair[1] > pair[0]}
    assert not over
    # An estimate that is far too high would keep images out that could be served.
    ratios = sorted(expected / took for expected, took in results.values())
    # (Files of noise are large, so what counts them counts much here.)
    assert ratios[len(ratios) // 2] < 1.7


def jpeg(**options: object) -> bytes:
    return saved(Image.new("RGB", (33, 17)), "JPEG", **options)


@pytest.mark.parametrize(("subsampling", "blocks"), [(0, 5 * 3 * 3), (2, 3 * 2 * 6)])
def test_only_what_comes_in_several_scans_is_kept(subsampling: int, blocks: int) -> None:
    assert read_header(jpeg(subsampling=subsampling)).coefficient_bytes == 0
    progressive = jpeg(subsampling=subsampling, progressive=True)
    assert read_header(progressive).coefficient_bytes == blocks * 64 * 2


def test_a_baseline_file_with_a_scan_for_each_colour_is_kept_as_well() -> None:
    data = bytearray(jpeg(subsampling=0))
    scan = data.index(b"\xff\xda")
    data[scan + 4] = 1  # components in the first scan
    assert read_header(bytes(data)).coefficient_bytes == 5 * 3 * 3 * 64 * 2


@pytest.mark.parametrize("place", [7, 9])
def test_a_header_without_components_is_corrupt(place: int) -> None:
    data = bytearray(jpeg())
    data[data.index(b"\xff\xc0") + 2 + place] = 0
    with pytest.raises(UndecodableImage, match="JPEG header"):
        decode(bytes(data), max_pixels=10**6)
