"""Loads a trained checkpoint without executing anything that it contains."""

import hashlib
import pickle
import re
import warnings
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
from model.blocks import BottleneckFLA, C2fFLA, FLABlock
from model.focused_linear_attention import FocusedLinearAttention

# A pickle may name these and no others; their code is ours or the libraries', never the file's.
ALLOWED = (
    *(nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.LayerNorm, nn.Dropout, nn.Identity),
    *(nn.SiLU, nn.MaxPool2d, nn.Upsample, nn.ModuleList, nn.Sequential),
    *(DetectionModel, Conv, C2f, Bottleneck, SPPF, Concat, Detect, DFL, IterableSimpleNamespace),
    *(FocusedLinearAttention, FLABlock, BottleneckFLA, C2fFLA),
)


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
    """Reads a `.pt` that ultralytics or `python -m model train` wrote.

    Raises:
        CheckpointRefused: the file is missing, damaged, or asks for a class or function that is
            not on the allow-list; the message names it, and it was not run.
        ModelUnsupported: there is no detection model in it.
    """
    if not path.is_file():
        raise CheckpointRefused(f"{path}: there is no such file")
    try:
        with torch.serialization.safe_globals(list(ALLOWED)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd pickles; those fail just below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError) as error:
        raise CheckpointRefused(f"{path}: {reason(error)}") from None
    model = (content.get("ema") or content.get("model")) if isinstance(content, dict) else None
    if not isinstance(model, DetectionModel):
        raise ModelUnsupported(
            f"{path}: a checkpoint with a detection model is expected, this holds "
            f"{type(content if model is None else model).__name__}"
        )
    names: dict[int, str] = model.names
    return Checkpoint(
        model=model.float().eval(),
        architecture=architecture_name(model.yaml),
        class_names=tuple(names[class_id] for class_id in sorted(names)),
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )


def reason(error: Exception) -> str:
    """What torch says of a file it won't load, in one line and without its advice to trust it."""
    refused = re.search(r"(?:Unsupported global: GLOBAL|unsupported GLOBAL) ([\w.]+)", str(error))
    if refused:
        return (
            f"refused: it asks for {refused[1]}, which is not on the list of what a checkpoint "
            "may hold; nothing of it was run"
        )
    said = str(error).splitlines()
    if isinstance(error, pickle.UnpicklingError) or not said:
        return "not a complete checkpoint: torch did not write these bytes"
    return f"not a complete checkpoint: {said[0][:160]}"


def architecture_name(table: dict[str, Any]) -> str:
    """The name of a layer table with the scale letter in it: yolov8-fla at scale n, yolov8n-fla."""
    stem = Path(str(table.get("yaml_file", "unknown"))).stem
    scale = str(table.get("scale", ""))
    if re.match(r"yolov8[nsmlx]", stem):
        return stem
    return re.sub(r"^yolov8", f"yolov8{scale}", stem)
