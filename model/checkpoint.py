"""Reads a checkpoint without running anything that it contains.

A `.pt` is a pickle, and a pickle can name any class or function of this machine and call it. Here
every name becomes an inert object that only holds what it was given; parameters, the layer table
and the class names are read off these. So neither the file's classes nor ultralytics' own are
made from it, and a network is built anew from the table.
"""

import io
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from ultralytics.nn.tasks import DetectionModel

from model.registration import ACTIVATIONS, is_activation, register

# What an honest checkpoint calls with arguments: paths and numbers among its training arguments.
CALLED = ("pathlib", "numpy", "_codecs")
# The layers of our tables. ultralytics' parser would take any name that its module knows.
BUILT = ("Conv", "C2f", "SPPF", "Concat", "Detect", "nn.Upsample", "FLABlock", "C2fFLA")

# Of the file's own size; torch.save does not compress, and weights hardly can be.
MAX_EXPANSION = 20

# What of a table decides widths and depths; the first yolov8n.pt has the factors themselves.
SIZES = ("scales", "scale", "depth_multiple", "width_multiple", "yaml_file")


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
        imgsz: side of the pictures that it was trained on, pixels; None when it isn't said.
    """

    file_name: str
    tensors: Mapping[str, Tensor]
    layer_classes: Mapping[int, str]
    table: dict[str, Any] | None
    class_names: tuple[str, ...] | None
    imgsz: int | None


class Inert:
    """Stands for a class or a function that a pickle names: holds its state and does nothing."""

    name = ""

    def __new__(cls, *args: object, **kwargs: object) -> "Inert":
        """Ignores what it is called with; a call that no checkpoint needs is refused."""
        if (args or kwargs) and cls.name.split(".")[0] not in CALLED:
            raise pickle.UnpicklingError(f"it calls {cls.name}")
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


def read_checkpoint(path: Path) -> Saved:
    """Reads a `.pt` of ultralytics, of a patched copy of it, of ours, or a bare state dict.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, calls something, or holds no network; nothing of it was run.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    content = unpickle(path)
    try:
        return saved_in(path, content)
    except Exception as error:  # objects that nobody vouches for raise anything
        if isinstance(error, ValueError):
            raise
        raise ValueError(f"{path}: not a complete checkpoint") from None


def saved_in(path: Path, content: Any) -> Saved:
    """What `read_checkpoint` returns, of an unpickled file."""
    network: Any = content
    if isinstance(content, dict):
        found = [content.get(key) for key in ("ema", "model", "state_dict")]
        network = next((value for value in found if value is not None), content)
    held = vars(network) if isinstance(network, Inert) else {}
    tensors = dict(tensors_of(network)) if held else dict(network) if is_state(network) else {}
    if not any(name.startswith("model.") for name in tensors):
        raise ValueError(f"{path}: there is no YOLO network in it")
    for name, tensor in tensors.items():
        if not is_plain(tensor):
            raise ValueError(f"{path}: {name!r} does not hold the numbers of its shape")
    names, table = held.get("names"), held.get("yaml")
    imgsz = as_dict(held.get("args")).get("imgsz")
    if isinstance(names, dict) and set(names) == set(range(len(names))):
        names = [names[class_id] for class_id in range(len(names))]
    return Saved(
        file_name=path.name,
        tensors={
            # Not the tensor's own methods: a pickle can put others on it.
            name: plain.float() if plain.is_floating_point() else plain
            for name, plain in ((name, Tensor.detach(each)) for name, each in tensors.items())
        },
        layer_classes=layer_classes(network),
        table=table if isinstance(table, dict) else None,
        class_names=tuple(map(str, names)) if isinstance(names, list) else None,
        imgsz=imgsz if isinstance(imgsz, int) else None,
    )


def unpickle(path: Path) -> Any:
    """What the file holds, every object but tensors and plain containers being `Inert`."""
    content = path.read_bytes()
    if expands(content):
        raise ValueError(f"{path}: refused: it unpacks to more than {MAX_EXPANSION} times its size")
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(content))
        inert: list[Any] = [(type("Inert", (Inert,), {"name": name}), name) for name in named]
        with torch.serialization.safe_globals(inert), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd pickles; those fail just below
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that nobody vouches for raise anything
        # Ours, or torch's for the modules that it blocks whatever stands for them.
        name = re.search(r"(?:it calls|unsupported GLOBAL) ([\w.]+)", str(error))
        why = f"refused: it calls {name[1]}; nothing of it was run" if name else ""
        raise ValueError(f"{path}: {why or 'not a complete checkpoint'}") from None


def expands(content: bytes) -> bool:
    """Whether a zip archive says of itself that it would fill the memory when it is read."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            size = sum(member.file_size for member in archive.infolist())
    except Exception:  # no archive, or a damaged one: told by those who read it
        return False
    return size > MAX_EXPANSION * len(content)


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


def tensors_of(module: Any, prefix: str = "") -> list[tuple[str, Tensor]]:
    """The state dict of a pickled module, by what `torch.nn.Module` keeps in its attributes."""
    held = vars(module) if isinstance(module, Inert) else {}
    fleeting = held.get("_non_persistent_buffers_set", ())
    own = {**as_dict(held.get("_parameters")), **as_dict(held.get("_buffers"))}
    tensors = [
        (prefix + name, value)
        for name, value in own.items()
        if isinstance(value, Tensor) and name not in fleeting
    ]
    for name, child in as_dict(held.get("_modules")).items():
        tensors += tensors_of(child, f"{prefix}{name}.")
    return tensors


def layer_classes(network: Any) -> dict[int, str]:
    """The class name of each layer of a pickled network, by index."""
    held = vars(network) if isinstance(network, Inert) else {}
    layers = as_dict(held.get("_modules")).get("model")
    children = as_dict(vars(layers).get("_modules")) if isinstance(layers, Inert) else {}
    return {
        int(index): layer.name.rpartition(".")[2]
        for index, layer in children.items()
        if isinstance(layer, Inert) and index.isdecimal()
    }


def as_dict(value: Any) -> dict[str, Any]:
    """The value where it is a dict with names as keys, else an empty one."""
    return value if isinstance(value, dict) and all(isinstance(key, str) for key in value) else {}


def rebuild(saved: Saved) -> DetectionModel:
    """The network of a checkpoint, float32, in evaluation mode, with its class names.

    Raises:
        ValueError: it has no layer table or no class names, layers that are neither plain
            YOLOv8's nor ours, or weights that do not fit its own table.
    """
    table, names = saved.table, saved.class_names
    if table is None or names is None:
        raise ValueError(f"{saved.file_name}: no layer table or no class names in it: weights only")
    try:
        rows = [*table["backbone"], *table["head"]]
        foreign = sorted({str(row[2]) for row in rows} - set(BUILT))
        head, activation = rows[-1][2], table.get("activation")
    except (LookupError, TypeError, RecursionError):
        raise ValueError(f"{saved.file_name}: its layer table has no backbone and head") from None
    foreign = foreign or sorted(set(saved.layer_classes.values()) - {"Upsample", *BUILT})
    if activation and not is_activation(activation):
        raise ValueError(f"{saved.file_name}: its activation is none of {ACTIVATIONS}")
    if foreign or head != "Detect":
        what = f"layers {', '.join(foreign)}" if foreign else f"the head {head}"
        raise ValueError(
            f"{saved.file_name}: has {what}, which this command does not know; "
            f"`python -m export` may: export it, and serve or measure that"
        )
    register()
    kept: dict[str, Any] = {key: table[key] for key in SIZES if key in table}
    if activation:
        kept["activation"] = activation
    kept |= {"backbone": table["backbone"], "head": table["head"], "nc": len(names)}
    try:
        model = DetectionModel(kept, nc=len(names), verbose=False)
        model.load_state_dict(dict(saved.tensors))
    except Exception as error:  # a table from a file that nobody vouches for
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"{saved.file_name}: does not fit its layer table: {said}") from None
    model.names = dict(enumerate(names))
    return model.float().eval()
