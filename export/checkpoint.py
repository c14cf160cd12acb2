"""Loads a trained checkpoint without executing anything that it contains."""

import hashlib
import io
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from ultralytics.nn.modules import C2f, Concat, Conv, Detect
from ultralytics.nn.modules.block import DFL, SPPF, Bottleneck
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import IterableSimpleNamespace

from export.errors import CheckpointRefused, ModelUnsupported
from export.foreign import TAKE_OVER, ForeignLayer, take_over
from model.blocks import BottleneckFLA, C2fFLA, FLABlock
from model.focused_linear_attention import FocusedLinearAttention

# A pickle may name these and no others; their code is ours or the libraries', never the file's.
ALLOWED = (
    *(nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.LayerNorm, nn.Dropout, nn.Identity),
    *(nn.SiLU, nn.MaxPool2d, nn.Upsample, nn.ModuleList, nn.Sequential),
    *(DetectionModel, Conv, C2f, Bottleneck, SPPF, Concat, Detect, DFL, IterableSimpleNamespace),
    *(FocusedLinearAttention, FLABlock, BottleneckFLA, C2fFLA),
)

Shells = Mapping[type, tuple[str, type]]


@dataclass(frozen=True)
class Checkpoint:
    """A trained detector as it came out of training.

    Attributes:
        model: float32, in evaluation mode, neither fused nor rewritten.
        architecture: such as "yolov8n-fla"; the name of the layer table it was built from.
        class_names: the name of each class id.
        sha256: of the file, 64 hex digits.
    """

    model: DetectionModel
    architecture: str
    class_names: tuple[str, ...]
    sha256: str


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads a `.pt` that ultralytics, a tutorial's copy of it, or `python -m model train` wrote.

    Raises:
        CheckpointRefused: the file is missing, damaged, or asks for a class or function that is
            not on the allow-list, or calls one that is; the message names it, and it was not run.
        ModelUnsupported: there is no detection model in it, or its classes have not a name each.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointRefused(f"{path}: {error.strerror}") from None
    known = {f"{kind.__module__}.{kind.__name__}": kind for kind in ALLOWED}
    known |= foreign_layers(path, content, known)
    shells = {shell(kind): (name, kind) for name, kind in known.items()}
    model = detection_model(path, unpickle(path, content, shells), shells)
    take_over(model)
    names, classes = model.__dict__.get("names"), range(model.model[-1].nc)
    if not isinstance(names, dict) or set(names) != set(classes):
        raise ModelUnsupported(
            f"{path}: its head has {len(classes)} classes, its names are {names}"
        )
    return Checkpoint(
        model=model.float().eval(),
        architecture=architecture_name(model.__dict__.get("yaml")),
        class_names=tuple(str(names[class_id]) for class_id in classes),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def foreign_layers(
    path: Path, content: bytes, known: Mapping[str, type]
) -> dict[str, type[ForeignLayer]]:
    """Empty layers for the tutorials' classes that a file names, by their full names in it.

    Raises:
        CheckpointRefused: the file is damaged.
    """
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(content))
    except Exception as error:  # as in `unpickle`
        raise CheckpointRefused(f"{path}: {reason(error)}") from None
    layers = {}
    for name in set(named) - known.keys():
        class_name = name.rpartition(".")[2]
        if class_name in TAKE_OVER:
            layers[name] = type(class_name, (ForeignLayer,), {"foreign_name": class_name})
    return layers


def unpickle(path: Path, content: bytes, shells: Shells) -> Any:
    """What the file holds, its objects being instances of the shells.

    Args:
        path: for messages.
        content: the file.
        shells: the name and the class that each stands for; a pickle may name no others.

    Raises:
        CheckpointRefused: as `load_checkpoint` says.
    """
    named: list[Any] = [(stand_in, name) for stand_in, (name, _) in shells.items()]
    try:
        with torch.serialization.safe_globals(named), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd pickles; those fail just below
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that nobody vouches for raise anything
        raise CheckpointRefused(f"{path}: {reason(error)}") from None


def shell(kind: type) -> type:
    """A stand-in for an allowed class that a pickle can fill but not construct.

    A pickled module is made without its constructor and then filled. A pickle could also call
    the constructor with arguments of its own, and ultralytics' evaluates some of them as code;
    or plant a method on an instance for the library to call.
    """

    def refuse(self: object, *args: object, **kwargs: object) -> None:
        if args or kwargs:
            raise pickle.UnpicklingError(f"calls {kind.__module__}.{kind.__name__}")

    def fill(self: object, state: object) -> None:
        if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
            raise pickle.UnpicklingError(f"calls {kind.__module__}.{kind.__name__}.__setstate__")
        for key, value in state.items():
            if key.startswith("__") or (callable(value) and callable(getattr(kind, key, None))):
                raise pickle.UnpicklingError(f"calls {kind.__module__}.{kind.__name__}.{key}")
        self.__dict__.update(state)

    return type(kind.__name__, (kind,), {"__init__": refuse, "__setstate__": fill})


def detection_model(path: Path, content: Any, shells: Shells) -> DetectionModel:
    """The model of an unpickled checkpoint, with its real classes in place of the shells.

    Args:
        path: for messages.
        content: what `unpickle` returned.
        shells: as `unpickle` took them.

    Raises:
        CheckpointRefused: a layer carries code, or something that is no layer.
        ModelUnsupported: there is no detection model, or its last layer is no detection head.
    """
    found: Any = None
    if isinstance(content, dict):
        found = content["ema"] if content.get("ema") is not None else content.get("model")
    if not isinstance(found, DetectionModel):
        held = content if found is None else found
        raise ModelUnsupported(
            f"{path}: a checkpoint with a detection model is expected, this holds "
            f"{type(held).__name__}"
        )
    try:
        modules = dict(nn.Module.named_modules(found))
        for name, module in modules.items():
            # Children are layers, and `named_modules` comes to them by itself.
            attributes = {k: v for k, v in module.__dict__.items() if k != "_modules"}
            if carries_code(attributes):
                raise CheckpointRefused(f"{path}: refused: layer {name!r} carries code of its own")
        for module in modules.values():
            module.__class__ = shells[type(module)][1]
        head = found.model[-1]
        if type(head) is not Detect:
            raise ModelUnsupported(f"{path}: the last layer is {type(head).__name__}, not Detect")
        complete = isinstance(head.nc, int) and isinstance(head.stride, torch.Tensor)
        if not (complete and isinstance(found.stride, torch.Tensor)):
            raise CheckpointRefused(f"{path}: not a complete model: no classes or no strides")
    except (AttributeError, TypeError, IndexError, KeyError) as error:
        raise CheckpointRefused(f"{path}: not a complete model: {error}") from None
    return found


def carries_code(value: Any) -> bool:
    """Whether there is something in a layer's attribute that can be called, a hook or a layer."""
    if isinstance(value, dict):
        return any(map(carries_code, value.values()))
    if isinstance(value, list | tuple | set):
        return any(map(carries_code, value))
    return callable(value)


def reason(error: Exception) -> str:
    """What torch says of a file it won't load, in one line and without its advice to trust it."""
    refused = re.search(
        r"(?:(?:Unsupported global: |unsupported )GLOBAL|(calls)) ([\w.]+)", str(error)
    )
    if refused:
        asks = "calls" if refused[1] else "asks for"
        why = "" if refused[1] else ", which is not on the list of what a checkpoint may hold"
        return f"refused: it {asks} {refused[2]}{why}; nothing of it was run"
    said = str(error).splitlines()
    if isinstance(error, RuntimeError) and said:
        return f"not a complete checkpoint: {said[0][:160]}"
    return "not a complete checkpoint: torch did not write these bytes"


def architecture_name(table: Any) -> str:
    """The name of a layer table with the scale letter in it: yolov8-fla at scale n, yolov8n-fla."""
    if not isinstance(table, dict):
        return "unknown"
    stem = re.sub(r"[^\w.-]", "_", Path(str(table.get("yaml_file", "unknown"))).stem)
    if re.match(r"yolov8[nsmlx]", stem):
        return stem
    scale = table.get("scale")
    return (
        re.sub(r"^yolov8", f"yolov8{scale}", stem) if scale in ("n", "s", "m", "l", "x") else stem
    )
