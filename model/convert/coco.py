"""Reads COCO detection annotations: one JSON with images, annotations and categories."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from model.convert.annotations import Annotations, Box, Image, given_size, number


def read_coco(path: Path) -> Annotations:
    """Reads a COCO file.

    Class ids follow the order of the category ids, which may have gaps; categories of one name
    are one class. A box is [x, y, width, height] in pixels from the upper left corner. Crowd
    boxes are left out, images without boxes are kept.

    Raises:
        ValueError: it is not such a file; the message names the record.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a text in UTF-8") from None
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    except RecursionError:
        raise ValueError(f"{path}: not a COCO file: too deep") from None
    if not isinstance(content, dict) or not {"images", "categories"} <= content.keys():
        raise ValueError(f"{path}: a COCO file has images, annotations and categories")
    names = categories(path, content)
    images = images_by_id(path, content)
    left_out: Counter[str] = Counter()
    for index, record in enumerate(records(path, content, "annotations")):
        where = f"{path}: annotation {record.get('id', f'number {index + 1}')}"
        if record.get("iscrowd"):
            left_out["crowd boxes"] += 1
            continue
        image, name = images.get(record.get("image_id")), names.get(record.get("category_id"))
        if image is None:
            raise ValueError(f"{where}: there is no image {record.get('image_id')}")
        if name is None:
            raise ValueError(f"{where}: there is no category {record.get('category_id')}")
        image.boxes.append(Box(name, corners(record.get("bbox"), where)))
    return Annotations(
        path, "COCO", list(dict.fromkeys(names.values())), list(images.values()), left_out
    )


def records(path: Path, content: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """One of the file's lists."""
    found = content.get(key, [])
    if not isinstance(found, list) or not all(isinstance(record, dict) for record in found):
        raise ValueError(f"{path}: {key} is not a list of records")
    for number_of, record in enumerate(found, 1):
        for name in ("id", "image_id", "category_id"):
            if not isinstance(record.get(name, 0), int | str):
                raise ValueError(f"{path}: {key} number {number_of}: {name} is {record[name]!r}")
    return found


def categories(path: Path, content: dict[str, Any]) -> dict[Any, str]:
    """The class name of each category id, in the order of the ids."""
    names: dict[Any, str] = {}
    for record in records(path, content, "categories"):
        name = record.get("name")
        if "id" not in record or not isinstance(name, str) or not name.strip():
            raise ValueError(f"{path}: category {record} has not both id and name")
        if names.setdefault(record["id"], name.strip()) != name.strip():
            raise ValueError(f"{path}: there are two categories of id {record['id']}")
    return dict(sorted(names.items(), key=lambda item: (isinstance(item[0], str), item[0])))


def images_by_id(path: Path, content: dict[str, Any]) -> dict[Any, Image]:
    """The image of each image id."""
    by_id: dict[Any, Image] = {}
    for index, record in enumerate(records(path, content, "images"), 1):
        where = f"{path}: image {record.get('id', f'number {index}')}"
        name = record.get("file_name")
        if "id" not in record or not isinstance(name, str) or not name:
            raise ValueError(f"{where}: has not both id and file_name")
        if record["id"] in by_id:
            raise ValueError(f"{where}: there are two images of this id")
        size = given_size(record.get("width"), record.get("height"), where)
        by_id[record["id"]] = Image((name,), where, size)
    return by_id


def corners(bbox: object, where: str) -> tuple[float, float, float, float]:
    """Corners of an [x, y, width, height]."""
    if not isinstance(bbox, list) or len(bbox) != 4:
        raise ValueError(f"{where}: bbox is {str(bbox)[:40]}, not [x, y, width, height]")
    x, y, width, height = (number(value, where) for value in bbox)
    return x, y, x + width, y + height
