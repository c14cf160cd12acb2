"""Tells what a checkpoint has that is not recognised, so that its owner can do something about it.

A file that comes here is refused in any case; what is found out only makes the message better.
"""

import sys
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from export.attention.mechanism import Mechanism, Shapes
from export.attention.table import MECHANISMS
from export.errors import CheckpointRefused, ExportError, ModelUnsupported
from export.sources.class_map import bare
from model.allow_list import ForeignLayer
from model.checkpoint import network_in
from model.errors import CheckpointRefused as Refused
from model.errors import printable
from model.unpickle import asks_for, named_globals, unpickle

TASKS = {
    "SegmentationModel": "segmentation",
    "SemanticSegmentationModel": "segmentation",
    "PoseModel": "pose",
    "ClassificationModel": "classification",
    "OBBModel": "oriented-box",
    "RTDETRDetectionModel": "RT-DETR",
    "WorldModel": "YOLO-World",
    "YOLOEModel": "YOLOE",
    "YOLOEModelSeg": "YOLOE",
    "YOLOv10DetectionModel": "YOLOv10",
}
SHOWN = 12  # parameters of a layer


def why_refused(
    path: Path, content: bytes, known: Mapping[str, type], refused: Refused
) -> ExportError:
    """The best that can be said of a file that `unpickle` refused.

    Where all it lacks is the classes of layers, it is read once more with empty layers in their
    place; nothing of that is kept.

    Args:
        path: for messages.
        content: the file.
        known: the classes that it may name, by their full names.
        refused: what `unpickle` said.

    Returns:
        ModelUnsupported with a line for each class of layers that is not recognised, or with the
        task of the network where that is not detection; otherwise CheckpointRefused.
    """
    named = named_globals(content)
    unknown = named - known.keys()
    if not unknown:
        return CheckpointRefused(refused)
    task = next((TASKS[bare(name)] for name in sorted(unknown) if bare(name) in TASKS), None)
    empty = {
        name: type(bare(name), (ForeignLayer,), {"foreign_name": name})
        for name in unknown
        if may_be_layer(name)
    }
    try:
        held = unpickle(path, content, {**known, **empty})
    except Refused as error:  # it names what is no layer, or calls something
        return CheckpointRefused(f"{error} (it is a {task} model)" if task else error)
    if task:
        return ModelUnsupported(
            f"{path}: this is a {task} model; only YOLOv8 detection is exported"
        )
    modules = modules_of(held)
    strangers = {
        where: module
        for where, module in modules.items()
        if isinstance(module, ForeignLayer) and module.foreign_name in unknown
    }
    if unused := unknown - {module.foreign_name for module in strangers.values()}:
        return CheckpointRefused(f"{path}: {asks_for(printable(min(unused)))}")
    if any(bare(module.foreign_name) == "v10Detect" for module in strangers.values()):
        return ModelUnsupported(
            f"{path}: its head, v10Detect, chooses its own detections as YOLOv10's does; only "
            "YOLOv8's Detect is exported"
        )
    return ModelUnsupported(f"{path}: {listing(modules, strangers)}")


def may_be_layer(name: str) -> bool:
    """Whether a name could be a layer's: Python's own library has none, and torch in one place."""
    package = name.partition(".")[0]
    if package == "torch":
        return name.startswith("torch.nn.modules.")
    return package not in sys.stdlib_module_names


def modules_of(held: Any) -> dict[str, nn.Module]:
    """Every layer of an unpickled network by its path, the network itself under "".

    Nothing where there is no network, or none that is put together as one.
    """
    network = network_in(held)
    if not isinstance(network, nn.Module):
        return {}
    try:
        modules = dict(nn.Module.named_modules(network))
        tables = [(module._parameters, module._buffers) for module in modules.values()]
    except (AttributeError, TypeError, RecursionError):
        return {}
    return modules if all(isinstance(table, dict) for pair in tables for table in pair) else {}


def listing(modules: Mapping[str, nn.Module], strangers: Mapping[str, ForeignLayer]) -> str:
    """One line a class: where its layers are, the parameters of the first, and what to do.

    Args:
        modules: every layer by its path.
        strangers: those that are not recognised.
    """
    classes: dict[str, list[str]] = {}
    for where, layer in strangers.items():
        classes.setdefault(layer.foreign_name, []).append(where)
    many = len(strangers) > 1
    lines = [f"{len(strangers)} {'layers are' if many else 'layer is'} not recognised:"]
    for name, paths in classes.items():
        shapes = parameter_shapes(paths[0], modules, strangers)
        sizes = [f"{key} {shape}" for key, shape in list(shapes.items())[:SHOWN]]
        if len(shapes) > SHOWN:
            sizes.append(f"and {len(shapes) - SHOWN} more")
        where = ", ".join(printable(path) or "the network itself" for path in paths)
        prefix = f"{paths[0]}."
        inside = [inner for inner in modules if inner.startswith(prefix)]
        found = (attention_with(parameter_shapes(inner, modules, strangers)) for inner in inside)
        held = next(filter(None, found), None)
        parts = {inner.removeprefix(prefix).partition(".")[0] for inner in inside}
        lines.append(
            f"- {where}: {printable(name)}, parameters {printable(', '.join(sizes)) or 'none'}; "
            f"{hint(printable(name), shapes, parts, held)}"
        )
    return "\n".join(lines)


def parameter_shapes(
    path: str, modules: Mapping[str, nn.Module], strangers: Mapping[str, ForeignLayer]
) -> dict[str, tuple[int, ...]]:
    """Shapes of a layer's parameters by name, without those of strangers inside it."""
    inner = [key for key in strangers if key != path and (not path or key.startswith(f"{path}."))]
    shapes = {}
    for where, module in modules.items():
        inside = where == path or not path or where.startswith(f"{path}.")
        if not inside or any(where == key or where.startswith(f"{key}.") for key in inner):
            continue
        for key, value in module._parameters.items():
            if isinstance(value, Tensor):
                whole = f"{where}.{key}" if where else key
                shapes[whole[len(path) + 1 :] if path else whole] = tuple(value.shape)
    return shapes


def attention_with(shapes: Shapes) -> Mechanism | None:
    """The attention that has parameters of these shapes."""
    return next((mechanism for mechanism in MECHANISMS if mechanism.recognise(shapes)), None)


def hint(name: str, shapes: Shapes, parts: Set[str], held: Mechanism | None) -> str:
    """What a layer may be, told by its parameters and parts, and what its owner can try.

    Args:
        name: of its class.
        shapes: of its parameters, without those of strangers inside it.
        parts: the names of the layers right inside it, strangers among them.
        held: the attention that is somewhere inside it.
    """
    likely = None
    if attention := attention_with(shapes):
        likely = attention.attention
    elif {"cv1.conv.weight", "cv2.conv.weight"} <= shapes.keys() and (
        held or parts <= {"cv1", "cv2", "m"}  # YOLO11's C3k has a cv3
    ):
        between, into = shapes["cv1.conv.weight"], shapes["cv2.conv.weight"]
        if between[0] == into[1]:
            # YOLO11's C2PSA has a bottleneck's convolutions, and attention of its own as `m`.
            plain = None if "m" in parts else "Bottleneck"
            likely = held.bottleneck if held else plain
        elif 4 * between[0] == into[1]:
            likely = "SPPF"
        else:
            likely = held.c2f if held else "C2f"
    elif {"conv.weight", "bn.weight", "bn.bias"} == shapes.keys():
        likely = "Conv"
    elif {"cv2.0.0.conv.weight", "cv3.0.0.conv.weight"} <= shapes.keys():
        likely = "Detect"
    elif "model.0.conv.weight" in shapes:
        likely = "DetectionModel"
    if likely:
        return (
            f"its parameters look like {likely}: if it computes the same, give --map a file with "
            f"the line `{name}: {likely}`"
        )
    return "no layer known here has such parameters, so its code would have to be added to export/"
