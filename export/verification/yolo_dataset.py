"""Images and labels of a YOLO-form data set, in pixels of the upright original images."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

from export.errors import DatasetInvalid

IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class Boxes:
    """Labelled or detected objects of one image.

    Attributes:
        xyxy: (N, 4) float64, pixels of the upright original image.
        class_ids: (N,) int64, class ids of the data set.
        scores: (N,) float64; ones for labels.
    """

    xyxy: NDArray[np.float64]
    class_ids: NDArray[np.int64]
    scores: NDArray[np.float64]


@dataclass(frozen=True)
class LabelledImage:
    """One image of the data set and its truth; an image without a label file has no objects."""

    path: Path
    width: int
    height: int
    truth: Boxes


def read_dataset(
    data_yaml: Path, split: str, most: int | None = None
) -> tuple[dict[int, str], list[LabelledImage]]:
    """Reads one split of a YOLO-form data set.

    Args:
        data_yaml: The data set's description.
        split: One of its keys, such as `val`.
        most: Images to take at most, evenly spread over the split; None takes all.

    Returns:
        The class names by id, and the images in order of their paths.

    Raises:
        DatasetInvalid: The description, an image or a label file is missing or can't be read.
    """
    names, paths = split_images(data_yaml, split)
    return names, [read_image(path, names) for path in evenly(paths, most)]


def split_images(data_yaml: Path, split: str) -> tuple[dict[int, str], list[Path]]:
    """The class names by id, and the paths of a split's images, in order.

    Raises:
        DatasetInvalid: The description can't be read, or has no such split or no images in it.
    """
    try:
        description = yaml.safe_load(data_yaml.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DatasetInvalid(f"cannot read {data_yaml}: {error}") from error
    named = isinstance(description, dict) and isinstance(description.get("names"), list | dict)
    if not named or not description["names"]:
        raise DatasetInvalid(f"{data_yaml} names no classes (key `names`)")
    if not description.get(split):
        raise DatasetInvalid(f"{data_yaml} has no split {split!r}")
    names = description["names"]
    names = dict(enumerate(names)) if isinstance(names, list) else names
    root = data_yaml.parent / str(description.get("path") or ".")
    sources = description[split] if isinstance(description[split], list) else [description[split]]
    paths = sorted(path for source in sources for path in list_images(root / str(source)))
    if not paths:
        raise DatasetInvalid(f"no images under {', '.join(str(root / s) for s in sources)}")
    return names, paths


def evenly(paths: Sequence[Path], most: int | None) -> list[Path]:
    """At most so many of the paths, evenly spread over them."""
    if most is None or len(paths) <= most:
        return list(paths)
    return [paths[i * len(paths) // most] for i in range(most)]


def list_images(source: Path) -> Iterator[Path]:
    """Yields the images of a folder, or those a text file lists, one a line."""
    if source.is_dir():
        yield from (p for p in source.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    elif source.is_file():
        yield from (source.parent / line for line in lines_of(source))
    else:
        raise DatasetInvalid(f"no such folder or list of images: {source}")


def lines_of(path: Path) -> list[str]:
    """The lines of a text file that are not empty."""
    try:
        return [line for line in path.read_text().split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetInvalid(f"cannot read {path}: {error}") from error


def read_image(path: Path, names: Mapping[int, str]) -> LabelledImage:
    """Takes the upright size of an image, and its labels from the parallel `labels` folder."""
    try:
        encoded = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DatasetInvalid(f"cannot read {path}: {error.strerror}") from error
    # Decoded rather than asked for its header: this turns it upright, as the labels have it.
    try:
        image = cv2.imdecode(encoded, cv2.IMREAD_COLOR) if encoded.size else None
    except cv2.error:  # too many pixels
        image = None
    if image is None:
        raise DatasetInvalid(f"cannot read {path}: not an image, or too large")
    height, width = image.shape[:2]
    return LabelledImage(path, width, height, read_labels(label_path(path), width, height, names))


def label_path(image: Path) -> Path:
    """Says where the labels of an image lie: the last `images` of its path becomes `labels`."""
    head, found, tail = str(image.with_suffix(".txt")).rpartition(f"{os.sep}images{os.sep}")
    return Path(f"{head}{os.sep}labels{os.sep}{tail}" if found else tail)


def read_labels(path: Path, width: int, height: int, names: Mapping[int, str]) -> Boxes:
    """Reads lines of `class x_centre y_centre width height`, relative to the image.

    A line that stands twice counts once, as in ultralytics. No file means no objects.
    """
    lines = dict.fromkeys(lines_of(path) if path.is_file() else [])
    rows = [line.split() for line in lines]
    if bad := next((row for row in rows if len(row) != 5), None):
        raise DatasetInvalid(f"{path}: expected 5 values a line, found {len(bad)}")
    try:
        values = np.array(rows, np.float64).reshape(-1, 5)
    except ValueError as error:
        raise DatasetInvalid(f"{path}: {error}") from error
    if not np.isfinite(values).all():
        raise DatasetInvalid(f"{path}: a value is no finite number")
    class_ids = values[:, 0].astype(np.int64)
    if unknown := set(class_ids.tolist()) - set(names):
        raise DatasetInvalid(f"{path}: the data set names no class {min(unknown)}")
    centre, half = values[:, 1:3], values[:, 3:5] / 2
    xyxy = np.hstack([centre - half, centre + half]) * [width, height, width, height]
    return Boxes(xyxy, class_ids, np.ones(len(values)))
