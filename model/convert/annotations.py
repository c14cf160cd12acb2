"""What the readers of all forms give: images by name, with their boxes."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

Corners = tuple[float, float, float, float]


@dataclass(frozen=True)
class Box:
    """One annotated object.

    Attributes:
        class_name: as the file has it, without surrounding blanks.
        xyxy: x1, y1, x2, y2 in pixels, the image's upper left corner being (0, 0) and its lower
            right one (width, height); or fractions of the size where `Annotations` says so.
            Neither clipped nor ordered yet.
    """

    class_name: str
    xyxy: Corners


@dataclass
class Image:
    """One image as its annotations describe it.

    Attributes:
        names: of the file, the likeliest first; with or without folders and ending.
        where: where it was said, for messages: "train.json: image 7".
        size_wh: (width, height) in pixels as the annotations have it; None when they don't say.
    """

    names: tuple[str, ...]
    where: str
    size_wh: tuple[int, int] | None = None
    boxes: list[Box] = field(default_factory=list)


@dataclass
class Annotations:
    """A data set before its images were looked at.

    Attributes:
        source: the file or folder that was read, for messages.
        form: "COCO", "Pascal VOC" or "CSV".
        class_names: in the order of their class ids.
        images: in the order of the file.
        left_out: how many of what the reader left out, by reason.
        fractions: boxes are fractions of the image's size and not pixels.
    """

    source: Path
    form: str
    class_names: list[str]
    images: list[Image]
    left_out: Counter[str] = field(default_factory=Counter)
    fractions: bool = False


def number(text: object, where: str) -> float:
    """A finite number.

    Raises:
        ValueError: it is not one; the message says where it stood.
    """
    try:
        value = float(text)  # type: ignore[arg-type]  # whatever the file has in its place
    except (TypeError, ValueError, OverflowError):  # JSON has whole numbers of any length
        value = math.nan
    if not math.isfinite(value) or isinstance(text, bool):
        raise ValueError(f"{where}: a number is expected, not {str(text)[:40]!r}")
    return value


def given_size(width: object, height: object, where: str) -> tuple[int, int] | None:
    """(width, height); None where it is missing or zero, which some tools write for unknown."""
    if width in (None, "") or height in (None, ""):
        return None
    size = int(number(width, where)), int(number(height, where))
    return size if min(size) > 0 else None


def in_order(names: Iterable[str]) -> list[str]:
    """Class names sorted: by value where all are whole numbers, else by their letters."""
    names = set(names)
    if all(name.isdecimal() for name in names):
        return sorted(names, key=int)
    return sorted(names)
