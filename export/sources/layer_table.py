"""Reads the layer table that parameters belong to: a name of ours, or somebody's YAML."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from ultralytics.utils.ops import make_divisible

from export.attention.table import TUTORIAL_ROWS
from export.errors import ModelUnsupported
from export.sources.yaml_file import read_yaml, truncate_repr
from model.attention.table import ROWS
from model.registration import ACTIVATIONS, SCALES, architecture, is_activation

LAYERS = ("Conv", "C2f", "Bottleneck", "SPPF", "Concat", "Detect", "nn.Upsample", *ROWS)


@dataclass(frozen=True)
class LayerTable:
    """A layer table that can be built here.

    Attributes:
        source: where it is from, for messages.
        rows: as ultralytics' models take it; the tutorials' layers are stand-ins of their channels.
        tutorial_rows: index of each row with a tutorial's layer, and its name.
        class_names: that the table gives; None where it gives none.
    """

    source: str
    rows: dict[str, Any]
    tutorial_rows: Mapping[int, str]
    class_names: tuple[str, ...] | None


def read_layer_table(arch: str, state: Mapping[str, Tensor]) -> LayerTable:
    """The table of that name or in that file.

    Args:
        arch: `yolov8n-fla`, `yolov8s`, ..., or a path that ends in .yaml or .yml.
        state: the parameters that it is for, as `DetectionModel` names them. Files hold several
            scales; the one that fits is taken.

    Raises:
        ModelUnsupported: there is no such table, or it has layers that are not known here.
    """
    path = Path(arch)
    if path.suffix not in (".yaml", ".yml"):
        try:
            rows = architecture(arch)
        except ValueError as error:
            raise ModelUnsupported(f"--arch: {error}; or the path of a YAML") from None
        return LayerTable(arch, rows, {}, None)
    rows, tutorial_rows = translated(path, read_yaml(path))
    rows["yaml_file"] = str(path)
    rows["scale"] = scale_of(rows, path.stem, state)
    return LayerTable(str(path), rows, tutorial_rows, names_in(rows))


def translated(path: Path, rows: Any) -> tuple[dict[str, Any], dict[int, str]]:
    """The table with stand-ins for the tutorials' layers, and the rows that have one.

    An attention keeps its channels whatever its arguments are, and its parameters say the rest;
    a tutorial's C2f takes what ultralytics' takes.

    Raises:
        ModelUnsupported: it is no table, or has a layer that is not known here. ultralytics would
            look any name up, and run what stands under `activation` as code.
    """
    if not isinstance(rows, dict) or not all(
        isinstance(rows.get(part), list) for part in ("backbone", "head")
    ):
        raise ModelUnsupported(f"{path}: not a layer table: it has no lists `backbone` and `head`")
    if activation := rows.get("activation"):
        if not is_activation(activation):
            raise ModelUnsupported(
                f"{path}: activation {truncate_repr(activation)!r} is none of {ACTIVATIONS}"
            )
        rows["activation"] = f"torch.{activation.removeprefix('torch.')}"
    changed, found = [], {}
    for index, row in enumerate([*rows["backbone"], *rows["head"]]):
        if not isinstance(row, list) or len(row) != 4 or not isinstance(row[3], list):
            raise ModelUnsupported(f"{path}: row {index} is not [from, repeats, layer, arguments]")
        source, repeats, name, args = row
        if isinstance(name, str) and name in TUTORIAL_ROWS:
            found[index] = name
            stand_in = TUTORIAL_ROWS[name].stand_in
            if stand_in == "nn.Identity":
                if repeats != 1:
                    raise ModelUnsupported(
                        f"{path}: row {index} repeats {name} {truncate_repr(repeats)} times"
                    )
                args = []
            name = stand_in
        elif name not in LAYERS:
            known = ", ".join((*LAYERS, *TUTORIAL_ROWS))
            raise ModelUnsupported(
                f"{path}: row {index} is {truncate_repr(name)}, which is none of {known}"
            )
        changed.append([source, repeats, name, list(args)])
    split = len(rows["backbone"])
    return rows | {"backbone": changed[:split], "head": changed[split:]}, found


def scale_of(rows: Mapping[str, Any], stem: str, state: Mapping[str, Tensor]) -> str | None:
    """The scale that the parameters have, by the width of the first and the depth of a later layer.

    Args:
        rows: the table.
        stem: of the file's name, which mostly has the letter in it.
        state: the parameters.

    Returns:
        A key of the table's `scales`; where none fits, the one that was meant; None where there
        are no scales.
    """
    scales = rows.get("scales")
    if not isinstance(scales, dict) or not scales:
        return None
    letter = re.search(rf"yolov8([{SCALES}])", stem)
    meant = [rows.get("scale"), letter[1] if letter else None]
    order = [scale for scale in (*meant, *scales) if isinstance(scale, str) and scale in scales]
    fitting = (scale for scale in order if fits(rows, scales[scale], state))
    return next(fitting, order[0] if order else None)


def fits(rows: Mapping[str, Any], scale: Any, state: Mapping[str, Tensor]) -> bool:
    """Whether a scale [depth, width, largest number of channels] gives these parameters."""
    try:
        depth, width, max_channels = map(float, scale)
        for index, (_, repeats, name, args) in enumerate([*rows["backbone"], *rows["head"]]):
            if name == "Conv" and (weight := state.get(f"model.{index}.conv.weight")) is not None:
                if weight.shape[0] != make_divisible(min(args[0], max_channels) * width, 8):
                    return False
            elif name in ("C2f", "C2fFLA") and repeats > 1:
                last = max(round(repeats * depth), 1) - 1
                if f"model.{index}.m.{last}.cv1.conv.weight" not in state:
                    return False
                if f"model.{index}.m.{last + 1}.cv1.conv.weight" in state:
                    return False
    except (LookupError, ArithmeticError, TypeError, ValueError):
        return False
    return True


def names_in(rows: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The class names of a table, a list or numbered from 0; None where there are none."""
    names = rows.get("names")
    if isinstance(names, dict) and set(names) == set(range(len(names))):
        names = [names[class_id] for class_id in range(len(names))]
    return tuple(map(truncate_repr, names)) if isinstance(names, list) and names else None
