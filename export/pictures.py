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


def pictures(folder: Path | None) -> tuple[list[Image], str]:
    """(H, W, 3) uint8 RGB pictures, and in words what they are.

    Args:
        folder: where to take them from, the first ones by name; None generates them.

    Raises:
        ExportError: when there is no readable picture in the folder.
    """
    if folder is None:
        rng = np.random.default_rng(0)
        return [generated(rng) for _ in range(MOST)], f"{MOST} generated pictures"
    found: list[Image] = []
    for path in sorted(folder.rglob("*")) if folder.is_dir() else []:
        if len(found) == MOST:
            break
        if path.is_file():
            try:
                found.append(decode(path.read_bytes(), max_pixels=MAX_PIXELS))
            except BadInput:
                continue  # a folder of pictures may hold other things
    if not found:
        raise ExportError(f"--data {folder}: there is no picture in it that can be read")
    return found, f"{len(found)} pictures of {folder.name}"


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
    """The largest centred part of a picture with the aspect ratio of (height, width)."""
    height, width = picture.shape[:2]
    scale = min(height / aspect_hw[0], width / aspect_hw[1])
    new_height = max(1, round(aspect_hw[0] * scale))
    new_width = max(1, round(aspect_hw[1] * scale))
    top, left = (height - new_height) // 2, (width - new_width) // 2
    return np.ascontiguousarray(picture[top : top + new_height, left : left + new_width])
