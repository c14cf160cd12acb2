"""Images to compare answers on: the user's own, or generated ones."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.errors import DatasetInvalid
from export.verification.yolo_dataset import IMAGE_SUFFIXES, evenly, split_images
from server.errors import BadInput
from server.inference.artifact import Metadata
from server.inference.detector import prepare_image
from server.vision.decode import decode

Image = NDArray[np.uint8]
MOST = 8  # as many as the largest batch that is verified
MAX_PIXELS = 100_000_000
MIN_SIDE = 64  # pixels; a crop of less can miss its aspect ratio by more than a bucket


def comparison_images(data: Path | None) -> tuple[list[Image], str]:
    """(H, W, 3) uint8 RGB images to compare answers on, and in words what they are.

    Args:
        data: a folder, or a data set's YAML, whose split `val` is taken; the first images by
            name. None generates some.

    Raises:
        DatasetInvalid: there are none, or none of them can be read.
    """
    if data is None:
        rng = np.random.default_rng(0)
        return [generated(rng) for _ in range(MOST)], f"{MOST} generated images"
    found: list[Image] = []
    for path in listed(data, "val"):
        if len(found) == MOST:
            break
        try:
            image = decode(path.read_bytes(), max_pixels=MAX_PIXELS)
        except (BadInput, OSError):
            continue  # the others will do
        if min(image.shape[:2]) >= MIN_SIDE:
            found.append(image)
    if not found:
        raise DatasetInvalid(
            f"--data {data}: no image of at least {MIN_SIDE} x {MIN_SIDE} in it can be read"
        )
    return found, f"{len(found)} images of {describe_split(data, 'val')}"


def calibration_canvases(
    data: Path, split: str, metadata: Metadata, most: int, without: Collection[Path] = ()
) -> list[NDArray[np.uint8]]:
    """Letterboxed images, evenly spread over those given, as the serving code makes them.

    Args:
        data: a folder, or a data set's YAML.
        split: of the data set.
        metadata: of the artifact that will see them.
        most: how many.
        without: images to leave out, such as those that accuracy is measured on.

    Returns:
        (1, H, W, 3) uint8 RGB each, (H, W) a bucket.

    Raises:
        DatasetInvalid: there are none, or none of them can be read.
    """
    canvases: list[NDArray[np.uint8]] = []
    every, measured = listed(data, split), {path.resolve() for path in without}
    paths = [path for path in every if path.resolve() not in measured]
    if every and not paths:
        raise DatasetInvalid(
            f"{data}: int8 takes its ranges from images that accuracy is not measured on, and "
            "there are none; give others (--calibration FOLDER)"
        )
    for path in evenly(paths, most):
        try:
            image = decode(path.read_bytes(), max_pixels=MAX_PIXELS)
        except (BadInput, OSError):
            continue  # the others will do
        canvases.append(prepare_image(image, metadata).canvas[None])
    if not canvases:
        raise DatasetInvalid(f"{data}: no image to calibrate with can be read")
    return canvases


def listed(data: Path, split: str) -> list[Path]:
    """Paths of the images in a folder, or in a split of a data set's YAML, in order.

    Raises:
        DatasetInvalid: it is neither.
    """
    if data.is_dir():
        return sorted(path for path in data.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not data.is_file():
        raise DatasetInvalid(f"{data}: there is no such folder or data set's YAML")
    if data.suffix.lower() not in (".yaml", ".yml"):
        raise DatasetInvalid(f"{data}: a folder of images or a data set's YAML is expected")
    return split_images(data, split)[1]


def describe_split(data: Path, split: str) -> str:
    """The name of a folder, or of a data set and its split, without where it lies."""
    path = data.resolve()
    return path.name if path.is_dir() else f"{path.parent.name}/{path.name}, {split}"


def generated(rng: np.random.Generator) -> Image:
    """A smooth background with noise and rectangles, 640x640: something to respond to."""
    side = 640
    coarse = rng.integers(40, 216, (8, 8, 3))
    image = coarse.repeat(side // 8, 0).repeat(side // 8, 1).astype(np.float64)
    for _ in range(12):
        top, left = rng.integers(0, side - 64, 2)
        height, width = rng.integers(24, 240, 2)
        image[top : top + height, left : left + width] = rng.integers(0, 256, 3)
    image += rng.normal(0, 6, image.shape)
    return image.clip(0, 255).astype(np.uint8)


def cropped_to(image: Image, aspect_hw: tuple[int, int]) -> Image:
    """The largest centred part of an image with the aspect ratio of (height, width).

    The shorter side is rounded down: a pixel more would need a larger bucket.
    """
    height, width = image.shape[:2]
    tall = aspect_hw[0] > aspect_hw[1]
    short, long = min(aspect_hw), max(aspect_hw)
    available_long, available_short = (height, width) if tall else (width, height)
    new_long = min(available_long, available_short * long // short)
    new_short = new_long * short // long
    new_height, new_width = (new_long, new_short) if tall else (new_short, new_long)
    top, left = (height - new_height) // 2, (width - new_width) // 2
    return np.ascontiguousarray(image[top : top + new_height, left : left + new_width])
