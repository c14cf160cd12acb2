"""Puts parameters that came without their layers into the network that they were trained in.

The network is built from a layer table: one of ours by its name, or the YAML of a patched
ultralytics with the tutorials' names in it. Those rows are built as layers with the same channels,
which then give way to ours, as a whole checkpoint's do.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from ultralytics.nn.tasks import DetectionModel

from export.attention.table import TUTORIAL_ROWS
from export.errors import ModelUnsupported, as_export_errors
from export.sources.checkpoint import Checkpoint, architecture_name, checked, state_in
from export.sources.layer_table import LayerTable, read_layer_table
from model.checkpoint import check_tensors, describe
from model.errors import printable
from model.registration import in_place_of, register
from model.unpickle import named_globals, read, unpickle

WRAPPERS = re.compile(r"(module\.|_orig_mod\.|model\.)+")
SHOWN = 5


@as_export_errors()
def load_state_dict_checkpoint(
    path: Path, arch: str, names: tuple[str, ...] | None = None
) -> Checkpoint:
    """Reads a file of parameters only, `torch.save(model.state_dict())` and its like.

    Args:
        path: the file.
        arch: `yolov8n-fla`, `yolov8n`, ..., or the path of a layer table in YAML.
        names: of the classes, in their order; None takes those that the table has, or else
            class_0, class_1, ... The number of classes is the parameters' own.

    Raises:
        CheckpointRefused: the file is missing, damaged, or asks for a class or function; the
            message names it, and it was not run.
        ModelUnsupported: it holds a whole model; the table cannot be built; the parameters are
            not the table's, of which the message lists the first; or there are not as many
            names as classes.
    """
    content = read(path)
    if any(name.endswith("DetectionModel") for name in named_globals(content)):
        raise ModelUnsupported(f"{path}: it holds its layers itself: leave --arch out")
    held = state_in(unpickle(path, content, {}))
    if held is None:
        raise ModelUnsupported(f"{path}: with --arch, a file of parameters by name is expected")
    check_tensors(path, held)
    state = own_names(path, held)
    nc = class_count(path, state)
    table = read_layer_table(arch, state)
    class_names = names or table.class_names or tuple(f"class_{i}" for i in range(nc))
    if len(class_names) != nc:
        raise ModelUnsupported(
            f"{path}: its head has {nc} classes, the names are {len(class_names)}: "
            f"{', '.join(class_names)}"
        )
    model = build(table, nc)
    state = replace_tutorial_layers(path, model, table, state)
    fill(path, arch, model, state)
    model.names = dict(enumerate(class_names))
    return Checkpoint(
        model=checked(path, model),
        architecture=architecture_name(table.rows),
        class_names=tuple(class_names),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def own_names(path: Path, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state as `DetectionModel` names it, `model.0.conv.weight`, whatever it was wrapped in.

    Raises:
        ModelUnsupported: the names are not those of a list of layers, or some are there twice.
    """
    renamed = {f"model.{WRAPPERS.sub('', key, count=1)}": value for key, value in state.items()}
    if len(renamed) < len(state):
        raise ModelUnsupported(f"{path}: it holds parameters twice, with a prefix and without")
    for old, new in zip(state, renamed, strict=True):
        if not re.match(r"model\.\d{1,4}\.", new):
            raise ModelUnsupported(
                f"{path}: {printable(old[:80])} is not named as YOLOv8's parameters are, "
                "model.0.conv.weight"
            )
    return renamed


def class_count(path: Path, state: Mapping[str, Tensor]) -> int:
    """The number of classes of the head.

    Raises:
        ModelUnsupported: there is no detection head; where it shows, of what else there is one.
    """
    heads = {"cv4": "a pose, segmentation or oriented-box", "one2one_cv3": "an end-to-end"}
    for child, kind in heads.items():
        if any(re.match(rf"model\.\d+\.{child}\.", key) for key in state):
            raise ModelUnsupported(f"{path}: it has {kind} head; only YOLOv8 detection is exported")
    for key, value in state.items():
        if re.fullmatch(r"model\.\d+\.cv3\.0\.2\.weight", key) and value.ndim == 4:
            return value.shape[0]
    raise ModelUnsupported(f"{path}: no detection head is among its parameters (cv3.0.2.weight)")


def build(table: LayerTable, nc: int) -> DetectionModel:
    """The network of a table, with random parameters.

    Raises:
        ModelUnsupported: the table cannot be built; the message says what stood in the way.
    """
    register()
    try:
        return DetectionModel(table.rows | {"nc": nc}, ch=3, verbose=False)
    except Exception as error:  # a table that nobody vouches for raises anything
        said = describe(error)
        raise ModelUnsupported(f"{table.source}: the table cannot be built: {said}") from None


def replace_tutorial_layers(
    path: Path, model: DetectionModel, table: LayerTable, state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Puts our layers where the table has the tutorials', changing the model.

    Returns:
        The state under our layers' names, for the whole network.

    Raises:
        ModelUnsupported: a layer's parameters are not those of the published one.
    """
    renamed = dict(state)
    for index, name in table.tutorial_rows.items():
        where, stand_in = f"model.{index}", model.model[index]
        of_layer = inside(state, where)
        try:
            ours, of_ours = TUTORIAL_ROWS[name].take_over(stand_in, of_layer)
        except (LookupError, ArithmeticError, ValueError, RuntimeError) as error:
            shapes = {key: tuple(value.shape) for key, value in of_layer.items()}
            said = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
            raise ModelUnsupported(
                f"{path}: {where} is not the published {name} ({said}); its parameters are {shapes}"
            ) from None
        renamed = {k: v for k, v in renamed.items() if not k.startswith(f"{where}.")}
        renamed |= {f"{where}.{key}": value for key, value in of_ours.items()}
        model.model[index] = in_place_of(stand_in, ours)
    return renamed


def inside(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The part of a state that belongs to one layer, named from there."""
    start = f"{where}."
    return {key[len(start) :]: value for key, value in state.items() if key.startswith(start)}


def fill(path: Path, arch: str, model: DetectionModel, state: Mapping[str, Tensor]) -> None:
    """Loads a state that has to be the network's own.

    Raises:
        ModelUnsupported: it is not; the message lists the first differences with their shapes.
    """
    own = model.state_dict()
    missing = [f"{key} {tuple(own[key].shape)}" for key in own.keys() - state.keys()]
    unexpected = [f"{key} {tuple(state[key].shape)}" for key in state.keys() - own.keys()]
    misshapen = [
        f"{key} is {tuple(state[key].shape)}, not {tuple(own[key].shape)}"
        for key in own.keys() & state.keys()
        if own[key].shape != state[key].shape
    ]
    groups = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    said = [f"{len(keys)} {kind}: {first(keys)}" for kind, keys in groups.items() if keys]
    if said:
        if not any(".bn." in key for key in state):
            said.append("it has no batch norms: save the state before model.fuse() is called")
        raise ModelUnsupported(f"{path}: its parameters are not those of {arch}; {'; '.join(said)}")
    model.load_state_dict(dict(state))


def first(keys: list[str]) -> str:
    """The first few, in the order of the layers."""

    def order(key: str) -> list[tuple[int, str, str]]:  # longer numbers are larger
        return [(len(part), part, text) for part, text in re.findall(r"(\d*)(\D*)", key)]

    return ", ".join(key[:120] for key in sorted(keys, key=order)[:SHOWN]) + (
        ", ..." if len(keys) > SHOWN else ""
    )
