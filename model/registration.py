"""Makes ultralytics build and load our architectures, without a fork.

`parse_model`, ultralytics' reader of architecture files, scales channels only for the modules it
knows. So each of our blocks is parsed as a built-in one that has the same channels (its stand-in),
and takes that one's place in the finished network.
"""

import re
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from torch import nn
from ultralytics.nn import tasks
from ultralytics.utils import YAML

from model.attention.table import MECHANISMS, ROWS

FOLDER = Path(__file__).parent
SCALES = "nsmlx"
ACTIVATION = re.compile(r"(?:torch\.)?nn\.(SiLU\(\)|ReLU\(\)|LeakyReLU\([0-9.]*\))")
ACTIVATIONS = "nn.SiLU(), nn.ReLU(), nn.LeakyReLU(0.1)"


def architecture(name: str) -> dict[str, Any]:
    """The layer table of an architecture as ultralytics' models take it, its scale set.

    Hand this over rather than a path: ultralytics reads the scale letter off the whole path and
    stumbles over folders such as `v2models`.

    Args:
        name: `yolov8n-fla`, `yolov8s-c2f-fla`, ...: a scale letter n, s, m, l or x behind the 8;
            or a plain one, `yolov8n`, as ultralytics has it; or the path of a YAML of the user's
            own, whose name or key `scale` has the letter.

    Raises:
        ValueError: when there is no such architecture; the message lists those that exist. Or
            when a file has no backbone and head, or no scale.
        FileNotFoundError: when there is no such file.
    """
    if name.endswith((".yaml", ".yml")):
        return own_architecture(Path(name))
    match = re.fullmatch(rf"yolov8([{SCALES}])(-.+)?", name)
    if match and match[2] is None:
        plain: dict[str, Any] = tasks.yaml_model_load(f"{name}.yaml")
        return plain
    path = FOLDER / f"yolov8{match[2]}.yaml" if match else None
    if match is None or path is None or not path.is_file():
        ours = sorted(path.stem.replace("v8", "v8n") for path in FOLDER.glob("*.yaml"))
        known = ", ".join(["yolov8n", *ours])
        raise ValueError(f"unknown architecture {name!r}; there are {known}, and s, m, l, x for n")
    table: dict[str, Any] = YAML.load(path)
    return table | {"scale": match[1], "yaml_file": f"{name}.yaml"}


def own_architecture(path: Path) -> dict[str, Any]:
    """The layer table of a user's file; see `architecture`."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    table = yaml.safe_load(path.read_text())
    if not isinstance(table, dict) or not {"backbone", "head"} <= table.keys():
        raise ValueError(f"{path}: an architecture has a backbone and a head")
    if (activation := table.get("activation")) and not is_activation(activation):
        raise ValueError(f"{path}: its activation is none of {ACTIVATIONS}")
    match = re.match(rf"yolov8([{SCALES}])", path.stem)
    scale = match[1] if match else table.get("scale")
    if scale not in table.get("scales", {}):
        raise ValueError(
            f"{path}: no scale: call the file yolov8n-....yaml, or give it a key `scale`, one of "
            f"its `scales`"
        )
    return table | {"scale": scale, "yaml_file": path.name}


def is_activation(value: object) -> bool:
    """Whether a table's `activation` is a plain one: ultralytics runs what stands there as code."""
    return isinstance(value, str) and ACTIVATION.fullmatch(value) is not None


def register() -> None:
    """Teaches ultralytics our blocks, once per process; a second call is harmless.

    Its parser learns their names, and its reader of checkpoints where they were before.
    """
    if getattr(tasks.parse_model, "knows_our_blocks", False):
        return
    for mechanism in MECHANISMS:
        here = sys.modules[mechanism.module.__module__]
        sys.modules.update(dict.fromkeys(mechanism.former_modules, here))
    parse_model = tasks.parse_model

    def parse_with_ours(d: dict[str, Any], ch: int, verbose: bool = True) -> tuple[nn.Module, Any]:
        table = deepcopy(d)
        ours: dict[int, tuple[str, list[Any]]] = {}
        for index, row in enumerate(table["backbone"] + table["head"]):
            repeats, name, args = row[1:4]
            if name in ROWS:
                if repeats != 1 and not ROWS[name].repeatable:
                    raise ValueError(f"{name} is not repeated: its row says {repeats} times")
                ours[index] = name, args
                row[2], row[3] = ROWS[name].stand_in(args)
        layers, save = parse_model(table, ch, verbose)
        for index, (name, args) in ours.items():
            layers[index] = in_place_of(layers[index], ROWS[name].build(layers[index], args))
        return layers, save

    parse_with_ours.knows_our_blocks = True  # type: ignore[attr-defined]
    tasks.parse_model = parse_with_ours


def in_place_of(stand_in: nn.Module, block: nn.Module) -> nn.Module:
    """Gives a block the bookkeeping that ultralytics keeps on each layer of a network."""
    bookkeeping = {
        "i": stand_in.i,
        "f": stand_in.f,
        "type": f"{type(block).__module__}.{type(block).__name__}",  # hides nn.Module.type
        "np": sum(parameter.numel() for parameter in block.parameters()),
    }
    block.__dict__.update(bookkeeping)
    return block
