"""Reads a CSV with one box a row."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from model.convert.annotations import Annotations, Box, Image, given_size, in_order, number

# What our columns are called by TensorFlow's, RetinaNet's, Open Images' and others' tables, in
# small letters and without blanks, underscores and hyphens.
COLUMNS = {
    "file": ("filename", "file", "path", "imagepath", "image", "imagename", "imageid", "img"),
    "class": ("class", "classname", "label", "labelname", "name", "category", "celltype"),
    "x1": ("xmin", "x1", "left"),
    "y1": ("ymin", "y1", "top"),
    "x2": ("xmax", "x2", "right"),
    "y2": ("ymax", "y2", "bottom"),
}
SIZE = {"width": ("width", "imagewidth"), "height": ("height", "imageheight")}
BARE = ("file", "x1", "y1", "x2", "y2", "class")  # RetinaNet's order, without a header
CORNERS = ("x1", "y1", "x2", "y2")


def read_csv(path: Path) -> Annotations:
    """Reads a table; commas, semicolons and tabs part its columns.

    With a header, the columns are found by their names; without one they are path, x1, y1, x2,
    y2, class. A row with neither box nor class is an image without objects. Boxes are pixels
    from the upper left corner, or fractions of the size when no coordinate of the file is above 1.
    Class ids follow the sorted names.

    Raises:
        ValueError: it is not such a table; the message names the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a text in UTF-8") from None
    if not text.strip():
        raise ValueError(f"{path}: the file is empty")
    separator = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    places: dict[str, int] = {}
    images: dict[str, Image] = {}
    largest = 0.0
    try:
        for row in reader:
            where = f"{path} line {reader.line_num}"
            if not any(cell.strip() for cell in row):
                continue
            if not places:
                places = columns(path, row)
                if places.pop("header", 0):
                    continue
            cells = {name: cell_at(row, place) for name, place in places.items()}
            box = read_row(cells, where)
            size = given_size(cells.get("width"), cells.get("height"), where)
            image = images.setdefault(cells["file"], Image((cells["file"],), where, size))
            if box:
                image.boxes.append(box)
                largest = max(largest, *box.xyxy)
    except csv.Error as error:
        raise ValueError(f"{path} line {reader.line_num}: {error}") from None
    boxes = [box for image in images.values() for box in image.boxes]
    names = in_order(box.class_name for box in boxes)
    fractions = bool(boxes) and largest <= 1
    return Annotations(path, "CSV", names, list(images.values()), fractions=fractions)


def cell_at(row: Sequence[str], place: int) -> str:
    """A cell without surrounding blanks; empty past the end of a short row."""
    return row[place].strip() if place < len(row) else ""


def columns(path: Path, row: Sequence[str]) -> dict[str, int]:
    """The place of each of our columns, from the first row; "header" is in it when it is one.

    Raises:
        ValueError: a header lacks a column, or the row is none and not of RetinaNet's form.
    """
    said = ["".join(c for c in cell.lower() if c.isalnum()) for cell in row]
    places: dict[str, int] = {}
    for name, spellings in {**COLUMNS, **SIZE}.items():
        if found := [word for word in spellings if word in said]:
            places[name] = said.index(found[0])
    # A class may be called as a column is: "left".
    numbers = not any(c.isalpha() for cell in row[1:5] for c in cell)
    if numbers or not places.keys() & set(CORNERS):
        if len(row) == len(BARE):
            return {name: place for place, name in enumerate(BARE)}
        raise ValueError(
            f"{path} line 1: neither a header with {', '.join(COLUMNS)} nor the six columns "
            f"{', '.join(BARE)}"
        )
    for name, spellings in COLUMNS.items():
        if name not in places:
            raise ValueError(
                f"{path} line 1: the header {','.join(row)} has no column for {name}: "
                f"it may be called {', '.join(spellings)}"
            )
    return {**places, "header": 1}


def read_row(cells: dict[str, str], where: str) -> Box | None:
    """The box of a row; None for an image without objects."""
    if not cells["file"]:
        raise ValueError(f"{where}: has no file name")
    required = [cells[name] for name in (*CORNERS, "class")]
    if not any(required):
        return None
    if not cells["class"]:
        raise ValueError(f"{where}: has no class")
    x1, y1, x2, y2 = (number(cells[name], f"{where}: {name}") for name in CORNERS)
    return Box(cells["class"], (x1, y1, x2, y2))
