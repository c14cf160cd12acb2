"""The description of a YOLO-form data set: where its images are and what its classes are."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml


def described(data: Path, splits: Sequence[str] = ("train", "val")) -> dict[str, Any]:
    """A data set's YAML with its root made absolute.

    ultralytics takes a relative `path` from the working folder, where it only works by luck; here
    it is relative to the YAML.

    Raises:
        FileNotFoundError: the YAML, or what a split names, does not exist.
        ValueError: it is no such description, or its names are not those of classes 0, 1, ...
    """
    if not data.is_file():
        raise FileNotFoundError(f"{data}: there is no such file")
    try:
        table = yaml.safe_load(data.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise ValueError(f"{data}: not a text in UTF-8") from None
    if not isinstance(table, dict) or not {"train", "val", "names"} <= table.keys():
        raise ValueError(f"{data}: a data set's description has train, val and names")
    class_names(table, data)
    root = (data.parent / str(table.get("path") or ".")).resolve()
    for split in splits:
        if not table.get(split):
            raise ValueError(f"{data}: has no {split}")
        entries = table[split] if isinstance(table[split], list) else [table[split]]
        for entry in map(str, entries):
            if not (root / entry).exists():
                raise FileNotFoundError(f"{data}: {split} names {root / entry}, which is not there")
    return table | {"path": str(root)}


def class_names(table: dict[str, Any], data: Path) -> tuple[str, ...]:
    """The class names of a description, by class id; `data` is for messages."""
    names = names_by_id(table["names"])
    if not names:
        raise ValueError(f"{data}: names are a list, or one for each of the class ids 0, 1, ...")
    return names


def names_by_id(names: object) -> tuple[str, ...] | None:
    """The class names of a list, or of a dict with one for each of the ids 0, 1, ...; else None."""
    if isinstance(names, dict) and set(names) == set(range(len(names))):
        names = [names[class_id] for class_id in range(len(names))]
    return tuple(map(str, names)) if isinstance(names, list) else None
