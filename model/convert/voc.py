"""Reads Pascal VOC annotations: one XML an image."""

import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path, PurePosixPath

from model.convert.annotations import (
    Annotations,
    Box,
    Corners,
    Image,
    given_size,
    in_order,
    number,
)


def read_voc(path: Path, *, skip_difficult: bool = False) -> Annotations:
    """Reads one XML, or all below a folder (below its `Annotations`, where there is one).

    VOC's own convention: pixels are counted from 1 and both ends belong to the box, so
    xmin = 1, xmax = 640 is the whole width of an image of 640. Class ids follow the sorted names.

    Args:
        path: a file or a folder.
        skip_difficult: leave out the objects that are marked as difficult.

    Raises:
        ValueError: a file is not such an annotation; the message names it and the object.
    """
    folder = path / "Annotations" if (path / "Annotations").is_dir() else path
    files = sorted(folder.rglob("*.xml")) if folder.is_dir() else [path]
    if not files:
        raise ValueError(f"{path}: there is no XML in it")
    left_out: Counter[str] = Counter()
    images = [read_image(file, folder, left_out, skip_difficult) for file in files]
    names = in_order(box.class_name for image in images for box in image.boxes)
    return Annotations(path, "Pascal VOC", names, images, left_out)


def read_image(file: Path, folder: Path, left_out: Counter[str], skip_difficult: bool) -> Image:
    """The image of one XML below the folder; counts in `left_out` what was skipped."""
    try:
        root = ET.parse(file).getroot()
    except (ET.ParseError, LookupError, ValueError) as error:  # the last two of its encoding
        raise ValueError(f"{file}: not XML: {error}") from None
    if root.tag != "annotation":
        raise ValueError(f"{file}: a VOC file is an <annotation>, not <{root.tag}>")
    name = text(root, "filename").replace("\\", "/")
    beside = file.relative_to(folder).parent if file.is_relative_to(folder) else Path()
    # Where both differ, the <filename> is the older one: people rename the files.
    names: tuple[str, ...] = (
        (name, file.stem) if PurePosixPath(name).stem == file.stem else (file.stem, name)
    )
    names = tuple(str(beside / name) for name in names if name) + tuple(filter(None, names))
    size = given_size(root.findtext("size/width"), root.findtext("size/height"), f"{file}: size")
    image = Image(names, str(file), size)
    for index, element in enumerate(root.findall("object"), 1):
        where = f"{file}: object {index}"
        if skip_difficult and text(element, "difficult") == "1":
            left_out["difficult objects"] += 1
            continue
        class_name = text(element, "name")
        if not class_name:
            raise ValueError(f"{where}: has no name")
        image.boxes.append(Box(class_name, corners(element.find("bndbox"), where)))
    return image


def text(element: ET.Element, name: str) -> str:
    """The text of a child, without surrounding blanks; empty where there is none."""
    return (element.findtext(name) or "").strip()


def corners(element: ET.Element | None, where: str) -> Corners:
    """Corners of a <bndbox>, from 0."""
    if element is None:
        raise ValueError(f"{where}: has no bndbox")
    found = {name: element.findtext(name) for name in ("xmin", "ymin", "xmax", "ymax")}
    x1, y1, x2, y2 = (number(value, f"{where}: {name}") for name, value in found.items())
    return x1 - 1, y1 - 1, x2, y2
