"""What a checkpoint is: a network, or its parameters, with what training noted beside them.

`model.unpickle` makes the network's layers of nothing but what the file fills them with. Here they
are looked over before they become what runs: a layer that carries code is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.nn.modules import Detect
from ultralytics.nn.tasks import DetectionModel

from model.allow_list import known_names
from model.attention.table import ROWS
from model.description import names_by_id
from model.errors import CheckpointRefused
from model.registration import ACTIVATIONS, is_activation, register
from model.unpickle import named_globals, read, unpickle

# The layers of our tables. ultralytics' parser would take any name that its module knows.
BUILT = ("Conv", "C2f", "SPPF", "Concat", "Detect", "nn.Upsample", *ROWS)
# What of a table decides widths and depths; the first yolov8n.pt has the factors themselves.
SIZES = ("scales", "scale", "depth_multiple", "width_multiple", "yaml_file", "activation")
MAX_DEPTH = 32  # of a layer's attributes; a layer table has 5
# What a file of parameters alone keeps them under, where it has other things beside them.
STATE_KEYS = ("ema", "model", "state_dict", "model_state_dict")


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds.

    Attributes:
        file_name: for messages.
        tensors: parameters and buffers, floats as float32, by names such as
            "model.0.conv.weight": the layer's index, then the name within the layer.
        layer_classes: the class name of each layer, by index; empty for a bare state dict.
        table: the layer table that it was built from, None when it has none.
        class_names: by class id; None when they are not in the file.
        imgsz: side of the images that it was trained on, pixels; None when it isn't said.
    """

    file_name: str
    tensors: Mapping[str, Tensor]
    layer_classes: Mapping[int, str]
    table: dict[str, Any] | None
    class_names: tuple[str, ...] | None
    imgsz: int | None


def read_checkpoint(path: Path) -> Saved:
    """Reads a `.pt` of ultralytics, of a patched copy of it, of ours, or a bare state dict.

    Raises:
        CheckpointRefused: it is missing or damaged, names what is not on the allow-list, calls
            something, carries code, or holds no network; nothing of it was run.
    """
    _, network = load(path, read(path))
    held, layers = {}, {}
    if isinstance(network, DetectionModel):
        state, held = network.state_dict(), vars(network)
        layers = dict(network.model.named_children())
    elif is_state(network) and any(name.startswith("model.") for name in network):
        check_tensors(path, state := dict(network))
    else:
        raise CheckpointRefused(f"{path}: there is no YOLO network in it")
    table, args = held.get("yaml"), held.get("args")
    imgsz = (args if isinstance(args, dict) else getattr(args, "__dict__", {})).get("imgsz")
    return Saved(
        file_name=path.name,
        tensors={
            # Not the tensor's own methods: a pickle can put others on it.
            name: plain.float() if plain.is_floating_point() else plain
            for name, plain in ((name, Tensor.detach(tensor)) for name, tensor in state.items())
        },
        layer_classes={
            int(index): type(layer).__name__ for index, layer in layers.items() if index.isdecimal()
        },
        table=table if isinstance(table, dict) else None,
        class_names=names_by_id(held.get("names")),
        imgsz=imgsz if isinstance(imgsz, int) else None,
    )


def read_run(path: str | Path, **_: object) -> dict[str, Any]:
    """What a trainer goes on with, in place of the `torch.load` that ultralytics calls.

    Looking a file over and then unpickling it in full would not do: the two take some pickles for
    different ones.

    Returns:
        The network, float32, as `ema` and `model`, and what is numbers and texts beside it.

    Raises:
        CheckpointRefused: as `read_checkpoint` does; or it has no network with layers, or a layer
            table that is not `rebuild`'s.
    """
    held, network = load(Path(path), read(Path(path)))
    if not isinstance(network, DetectionModel):
        raise CheckpointRefused(f"{path}: it holds parameters only, no layers")
    check_table(str(path), network.__dict__.get("yaml"))
    beside = held.items() if type(held) is dict else ()
    try:
        kept = {key: value for key, value in beside if is_data(value)}
    except RecursionError:
        raise CheckpointRefused(f"{path}: its values are nested too deeply") from None
    return kept | {"ema": network, "model": network, "modelopt": None}


def load(path: Path, content: bytes, known: Mapping[str, type] | None = None) -> tuple[Any, Any]:
    """What a file holds, and of that `network_in`; it may name these classes, or the allow-list."""
    held = unpickle(path, content, known_names(named_globals(content)) if known is None else known)
    network = network_in(held)
    return held, filled_network(path, network) if isinstance(network, DetectionModel) else network


def network_in(held: Any) -> Any:
    """The network of an unpickled file, or its parameters; the average goes first."""
    found = [dict.get(held, key) for key in STATE_KEYS] if isinstance(held, dict) else []
    return next((value for value in found if value is not None), held)


def filled_network(path: Path, network: DetectionModel) -> DetectionModel:
    """The network of an unpickled file, float32, its real classes in place of the shells.

    Raises:
        CheckpointRefused: a layer carries code, or lacks what a layer has.
    """
    try:
        network.__dict__.pop("criterion", None)  # a run's that did not come to its end
        modules = dict(nn.Module.named_modules(network))
        for name, module in modules.items():
            # Children are layers, and `named_modules` comes to them by itself.
            attributes = {k: v for k, v in module.__dict__.items() if k != "_modules"}
            if carries_code(attributes) or carries_code(getattr(module._modules, "__dict__", {})):
                raise CheckpointRefused(f"{path}: refused: layer {name!r} carries code of its own")
        for module in modules.values():
            module.__class__ = type(module).__base__
            fill: Any = nn.Module.__setstate__
            fill(module, {})  # adds what older releases of torch did not have
        head, table = network.model[-1], network.__dict__.get("yaml")
        activation = table.get("activation") if isinstance(table, dict) else None
        if type(head) is Detect and not (
            isinstance(head.nc, int)
            and isinstance(head.stride, Tensor)
            and isinstance(network.stride, Tensor)
        ):
            raise CheckpointRefused(f"{path}: not a complete model: no classes or no strides")
        check_tensors(path, dict([*network.named_parameters(), *network.named_buffers()]))
        if activation and not is_activation(activation):  # ultralytics' parser would run it
            raise CheckpointRefused(f"{path}: its activation is none of {ACTIVATIONS}")
        network.state_dict()
        network.float()
    except CheckpointRefused:
        raise
    except Exception as error:  # objects that nobody vouches for raise anything
        raise CheckpointRefused(f"{path}: not a complete model: {describe(error)}") from None
    return network


def carries_code(value: Any, depth: int = MAX_DEPTH) -> bool:
    """Whether there is something in a layer's attribute that can be called, a hook or a layer.

    Looked for in attributes of tensors and dicts too: one called `values` hides what a dict holds.
    Raises RecursionError where it is nested deeper.
    """
    if depth == 0:
        raise RecursionError(f"values nested over {MAX_DEPTH} deep")
    inner = [*getattr(value, "__dict__", {}).values()] if not callable(value) else []
    if isinstance(value, dict):
        inner += dict.values(value)
    elif isinstance(value, list | tuple | set):
        inner += value
    return callable(value) or any(carries_code(item, depth - 1) for item in inner)


def describe(error: Exception) -> str:
    """What an error of a library says, in one line of a readable length."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def check_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raises CheckpointRefused where one of them is not plain, see `is_plain`."""
    for name, tensor in tensors.items():
        if not is_plain(tensor):
            raise CheckpointRefused(f"{path}: {name!r} does not hold the numbers of its shape")


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor has each of its numbers in memory, as those of a network do.

    One that repeats a few to any size would fill the memory when it is copied; and neither sparse
    nor quantised ones, nor those without numbers, can be copied into a network.
    """
    return (
        tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and not (tensor.is_quantized or tensor.dtype.is_complex)
        and Tensor.untyped_storage(tensor).nbytes() >= Tensor.numel(tensor) * tensor.itemsize
    )


def is_state(value: Any) -> bool:
    """Whether this is a state dict: tensors by name."""
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items()
    )


def is_data(value: Any) -> bool:
    """Whether this is numbers, texts and plain tensors, in plain containers of any depth."""
    if type(value) is dict:
        return all(map(is_data, [*value, *value.values()]))
    if type(value) in (list, tuple):
        return all(map(is_data, value))
    if type(value) is Tensor:
        return not vars(value) and is_plain(value)
    return value is None or type(value) in (bool, int, float, str)


def rebuild(saved: Saved) -> DetectionModel:
    """The network of a checkpoint, float32, in evaluation mode, with its class names.

    Raises:
        ValueError: it has no layer table or no class names, layers that are neither plain
            YOLOv8's nor ours, or weights that do not fit its own table.
    """
    table, names = saved.table, saved.class_names
    if table is None or names is None:
        raise ValueError(f"{saved.file_name}: no layer table or no class names in it: weights only")
    check_table(
        saved.file_name, table, "; `python -m export` may: export it, and serve or measure that"
    )
    register()
    kept: dict[str, Any] = {key: table[key] for key in SIZES if key in table}
    kept |= {"backbone": table["backbone"], "head": table["head"], "nc": len(names)}
    try:
        model = DetectionModel(kept, nc=len(names), verbose=False)
        model.load_state_dict(dict(saved.tensors))
    except Exception as error:  # a table from a file that nobody vouches for
        said = describe(error)
        raise ValueError(f"{saved.file_name}: does not fit its layer table: {said}") from None
    model.names = dict(enumerate(names))
    return model.float().eval()


def check_table(source: str, table: Any, advice: str = "") -> None:
    """Whether ultralytics' parser may be handed a layer table: it runs what others name.

    Raises:
        CheckpointRefused: it has no backbone and head, or layers that are neither plain YOLOv8's
            nor ours.
    """
    try:
        rows = [*table["backbone"], *table["head"]]
        foreign = sorted({str(row[2]) for row in rows} - set(BUILT))
        head = rows[-1][2]
    except (LookupError, TypeError, RecursionError):
        raise CheckpointRefused(f"{source}: its layer table has no backbone and head") from None
    if foreign or head != "Detect":
        what = f"layers {', '.join(foreign)}" if foreign else f"the head {head}"
        raise CheckpointRefused(f"{source}: has {what}, which this command does not know{advice}")
