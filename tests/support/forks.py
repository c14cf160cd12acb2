"""Checkpoints as patched copies of ultralytics write them, without such a copy."""

import io
import sys
import zipfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.ops import xywh2xyxy

ATTENTION = 4  # the layer of `small_network` that may be any attention over 32 channels
TABLE: dict[str, Any] = {
    "nc": 2,
    "backbone": [
        [-1, 1, "Conv", [16, 3, 2]],
        [-1, 1, "Conv", [32, 3, 2]],
        [-1, 1, "C2f", [32, True]],
        [-1, 1, "SPPF", [32, 5]],
        [-1, 1, "nn.Identity", []],
    ],
    "head": [[[2, 4], 1, "Detect", ["nc"]]],
}

# Of layers that every command knows.
PLAIN = TABLE | {"backbone": TABLE["backbone"][:4], "head": [[[2, 3], 1, "Detect", ["nc"]]]}


def small_network(attention: nn.Module | None = None, channels: int = 3) -> DetectionModel:
    """A detector of two classes on 32 channels, with random parameters."""
    torch.manual_seed(0)
    network = DetectionModel(deepcopy(TABLE), ch=channels, verbose=False)
    network.names = {0: "a", 1: "b"}
    if attention is not None:
        put(network, attention)
    return network


def put(network: DetectionModel, layer: nn.Module, index: int = ATTENTION) -> None:
    """Makes a layer one of the network's, with random parameters."""
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.1)
    old = network.model[index]
    layer.__dict__.update(i=old.i, f=old.f, type="", np=0)
    network.model[index] = layer


class Calls:
    """Pickles as a call of a function with arguments."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class Fork:
    """Somebody's package: its modules are there while checkpoints are written with it."""

    def __init__(self) -> None:
        self.modules: set[str] = set()

    def kind(self, full_name: str, base: type = nn.Module) -> type:
        """A class under that name."""
        module, _, name = full_name.rpartition(".")
        parts = module.split(".")
        for end in range(1, len(parts) + 1):
            path = ".".join(parts[:end])
            if path not in sys.modules:
                sys.modules[path] = ModuleType(path)
                self.modules.add(path)
        owner = sys.modules[module]
        if not hasattr(owner, name):
            setattr(owner, name, type(name, (base,), {"__module__": module}))
        kind: type = getattr(owner, name)
        return kind

    def own(self, layer: nn.Module, full_name: str) -> nn.Module:
        """Makes a layer one of that class."""
        layer.__class__ = self.kind(full_name)
        return layer

    def save(self, path: Path, layer: nn.Module, full_name: str, **beside: Any) -> Path:
        """Writes a `small_network` with a copy of this layer, then takes the package away."""
        content = {"model": small_network(self.own(deepcopy(layer), full_name)), **beside}
        saved(content, path)
        self.leave()
        return path

    def leave(self) -> None:
        """Takes the package away."""
        for name in self.modules:
            del sys.modules[name]
        self.modules.clear()


def saved(content: Any, path: Path) -> Path:
    """Writes a checkpoint as torch does."""
    torch.save(content, path)
    return path


def renamed(checkpoint: Path, names: dict[str, str], path: Path) -> Path:
    """A copy of a checkpoint that asks for other classes or functions, by their full names."""
    with zipfile.ZipFile(checkpoint) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for member, content in members.items():
            if member.endswith("data.pkl"):
                for old, new in names.items():
                    assert opcode(old) in content
                    content = content.replace(opcode(old), opcode(new))
            archive.writestr(member, content)
    path.write_bytes(buffer.getvalue())
    return path


def opcode(full_name: str) -> bytes:
    """What a pickle has for a class or a function."""
    module, _, name = full_name.rpartition(".")
    return f"c{module}\n{name}\n".encode()


def check_predictions(
    predict: Callable[[NDArray[np.float32]], NDArray[np.float32]], tutorial: Path, imgsz: int
) -> None:
    """Holds predictions against those that a tutorial's fork gave for its checkpoint."""
    with np.load(tutorial.with_name(f"{tutorial.stem}_{imgsz}.npz")) as file:
        images, expected = file["images_rgb_uint8_nhwc"], file["output"]
    for image, theirs in zip(images, expected, strict=True):
        ours = predict(image.transpose(2, 0, 1)[None].astype(np.float32) / 255)
        boxes, their_boxes = (xywh2xyxy(rows[:4].T) for rows in (ours, theirs))
        np.testing.assert_allclose(boxes, their_boxes, atol=1e-2, rtol=0)
        np.testing.assert_allclose(ours[4:], theirs[4:], atol=5e-5, rtol=0)
