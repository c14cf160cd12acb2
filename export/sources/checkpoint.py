"""Loads a trained checkpoint without executing anything that it contains."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn
from ultralytics.nn.modules import Detect
from ultralytics.nn.tasks import DetectionModel

from export.candidates import Candidates
from export.convert import convert
from export.errors import ModelUnsupported, as_export_errors
from export.rewrite import rewrite
from export.sources.class_map import kinds_of
from export.sources.foreign import take_over
from export.sources.unrecognised import why_refused
from model.checkpoint import describe, is_state, load, network_in
from model.errors import CheckpointRefused as Refused
from model.unpickle import named_globals, read

NO_MAP: Mapping[str, str] = MappingProxyType({})
MAX_STRIDE = 128  # pixels; the largest of any YOLOv8 is 64


@dataclass(frozen=True)
class Checkpoint:
    """A trained detector as it came out of training; an `export.sources.source.Source`.

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

    @property
    def strides(self) -> tuple[int, ...]:
        """Of the detection levels, in pixels."""
        return tuple(int(stride) for stride in self.model.model[-1].stride)

    @property
    def fixed_hw(self) -> tuple[int, int] | None:
        """None: it takes any height and width that are multiples of the largest stride."""
        return None

    @property
    def trained_imgsz(self) -> int | None:
        """The side of its training images, pixels; None where the file does not tell."""
        arguments = self.model.__dict__.get("args")
        imgsz = arguments.get("imgsz") if isinstance(arguments, dict) else None
        return imgsz if isinstance(imgsz, int) and imgsz > 0 else None

    def predict(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """What ultralytics' own network gives before NMS; see `Source`."""
        # Not in inference mode: the head keeps its anchor points for those who come after.
        with torch.no_grad():
            output: NDArray[np.float32] = self.model(torch.from_numpy(x))[0][0].numpy()
        return output

    def graph(self, input_hw: tuple[int, int], *, static: bool) -> onnx.ModelProto:
        """The rewritten network; see `Source`.

        Raises:
            ModelUnsupported: a layer holds what PyTorch runs and ONNX does not have.
        """
        try:
            return convert(Candidates(rewrite(self.model)), input_hw, static=static)
        except Exception as error:  # a model that runs may still hold anything
            raise ModelUnsupported(f"its layers cannot be converted: {describe(error)}") from error


@as_export_errors()
def load_checkpoint(path: Path, class_map: Mapping[str, str] = NO_MAP) -> Checkpoint:
    """Reads a `.pt` that ultralytics, a tutorial's copy of it, or `python -m model train` wrote.

    Args:
        path: the file.
        class_map: what classes are that are not known here, as `read_class_map` gives it.

    Raises:
        CheckpointRefused: the file is missing, damaged, or asks for a class or function that is
            not on the allow-list, or calls one that is; the message names it, and it was not run.
        ModelUnsupported: there is no YOLOv8 detection model in it; some of its layers are not
            recognised, which the message lists; its classes have not a name each; or the map
            does not fit the file.
    """
    content = read(path)
    known = kinds_of(named_globals(content), class_map)
    try:
        held, model = load(path, content, known)
    except Refused as refused:
        raise why_refused(path, content, known, refused) from None
    if not isinstance(model, DetectionModel):
        if state_in(held):
            raise ModelUnsupported(
                f"{path}: it holds parameters only, no layers: say which with --arch, a name such "
                "as yolov8n-fla or the YAML that it was trained with"
            )
        raise ModelUnsupported(
            f"{path}: a checkpoint with a detection model is expected, this holds "
            f"{type(model).__name__}"
        )
    if type(model.model[-1]) is not Detect:
        last = type(model.model[-1]).__name__
        raise ModelUnsupported(f"{path}: the last layer is {last}, not Detect")
    try:
        take_over(model)
    except ModelUnsupported as error:
        raise ModelUnsupported(f"{path}: {error}") from None
    except Exception as error:  # whatever layers raise that don't fit together
        raise ModelUnsupported(
            f"{path}: its layers do not fit together: {describe(error)}"
        ) from None
    names, nc = model.__dict__.get("names"), model.model[-1].nc
    if not isinstance(names, dict) or len(names) != nc or set(names) != set(range(nc)):
        raise ModelUnsupported(
            f"{path}: its head has {nc} classes, its names are {str(names)[:200]}"
        )
    return Checkpoint(
        model=checked(path, model),
        architecture=architecture_name(model.__dict__.get("yaml")),
        class_names=tuple(str(names[class_id]) for class_id in range(nc)),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def state_in(held: Any) -> dict[str, torch.Tensor] | None:
    """The parameters by name of a file that has nothing else of a network; None in others."""
    found = network_in(held)
    return dict(found) if is_state(found) and found else None


def checked(path: Path, model: DetectionModel) -> DetectionModel:
    """The same model in float32, found to take images and to answer as YOLOv8 does.

    Raises:
        ModelUnsupported: it does not.
    """
    try:
        model.float().eval()
        unlike = difference_from_yolov8(model)
    except Exception as error:  # whatever layers raise that don't fit together
        raise ModelUnsupported(
            f"{path}: its layers do not fit together: {describe(error)}"
        ) from None
    if unlike:
        raise ModelUnsupported(f"{path}: {unlike}")
    return model


def difference_from_yolov8(model: DetectionModel) -> str | None:
    """What an artifact could not hold of a model, which is run once; None where all is well."""
    head = model.model[-1]
    if head.end2end:
        return "its head chooses its own detections (end2end); only YOLOv8's is exported"
    first = getattr(model.model[0], "conv", None)
    if isinstance(first, nn.Conv2d) and first.in_channels != 3:
        return f"its first layer takes {first.in_channels} channels, images have 3"
    strides = head.stride.tolist()
    if not strides or not all(stride in range(1, MAX_STRIDE + 1) for stride in strides):
        return f"its strides are {strides}, not 1 to {MAX_STRIDE} pixels"
    side = 8 * int(max(strides))  # room for keys reduced eightfold on the smallest map
    with torch.no_grad():  # as in `predict`
        output = model(torch.zeros(1, 3, side, side))[0]
    if output.shape[1] != 4 + head.nc:
        return f"it gives {output.shape[1]} numbers an anchor point, not {4 + head.nc}"
    return None


def architecture_name(table: Any) -> str:
    """The name of a layer table with the scale letter in it: yolov8-fla at scale n, yolov8n-fla."""
    if not isinstance(table, dict):
        return "unknown"
    stem = re.sub(r"[^\w.-]", "_", Path(str(table.get("yaml_file", "unknown"))).stem)
    if re.match(r"yolov8[nsmlx]", stem):
        return stem
    scale = table.get("scale")
    return (
        re.sub(r"^yolov8(?![a-z])", f"yolov8{scale}", stem)
        if scale in ("n", "s", "m", "l", "x")
        else stem
    )
