"""Pictures to verify with: the user's own, or generated ones."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.errors import ExportError
from server.errors import BadInput
from server.image import decode

Image = NDArray[np.uint8]
MOST = 8  # as many as the largest batch that is verified
MAX_PIXELS = 100_000_000
MIN_SIDE = 64  # pixels; a crop of less can miss its aspect ratio by more than a bucket
SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


def pictures(folder: Path | None) -> tuple[list[Image], str]:
    """(H, W, 3) uint8 RGB pictures, and in words what they are.

    Args:
        folder: where to take them from, the first ones by name; None generates them.

    Raises:
        ExportError: when it is no folder, or no picture in it can be read.
    """
    if folder is None:
        rng = np.random.default_rng(0)
        return [generated(rng) for _ in range(MOST)], f"{MOST} generated pictures"
    if not folder.is_dir():
        raise ExportError(f"--data {folder}: a folder of pictures is expected")
    found: list[Image] = []
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES):
        if len(found) == MOST:
            break
        try:
            picture = decode(path.read_bytes(), max_pixels=MAX_PIXELS)
        except (BadInput, OSError):
            continue  # the others will do
        if min(picture.shape[:2]) >= MIN_SIDE:
            found.append(picture)
    if not found:
        raise ExportError(
            f"--data {folder}: no picture of at least {MIN_SIDE} x {MIN_SIDE} in it can be read"
        )
    return found, f"{len(found)} pictures of {folder.name or folder.resolve().name}"


def generated(rng: np.random.Generator) -> Image:
    """A smooth background with noise and rectangles, 640x640: something to respond to."""
    side = 640
    coarse = rng.integers(40, 216, (8, 8, 3))
    picture = coarse.repeat(side // 8, 0).repeat(side // 8, 1).astype(np.float64)
    for _ in range(12):
        top, left = rng.integers(0, side - 64, 2)
        height, width = rng.integers(24, 240, 2)
        picture[top : top + height, left : left + width] = rng.integers(0, 256, 3)
    picture += rng.normal(0, 6, picture.shape)
    return picture.clip(0, 255).astype(np.uint8)


def cropped_to(picture: Image, aspect_hw: tuple[int, int]) -> Image:
    """The largest centred part of a picture with the aspect ratio of (height, width).

    The shorter side is rounded down: a pixel more would need a larger bucket.
    """
    height, width = picture.shape[:2]
    tall = aspect_hw[0] > aspect_hw[1]
    short, long = min(aspect_hw), max(aspect_hw)
    available_long, available_short = (height, width) if tall else (width, height)
    new_long = min(available_long, available_short * long // short)
    new_short = new_long * short // long
    new_height, new_width = (new_long, new_short) if tall else (new_short, new_long)
    top, left = (height - new_height) // 2, (width - new_width) // 2
    return np.ascontiguousarray(picture[top : top + new_height, left : left + new_width])
