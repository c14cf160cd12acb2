"""Whole networks as optimised float32 graphs, for tests of what is done to them."""

from functools import cache
from pathlib import Path

import onnx
import torch
from ultralytics.nn.tasks import DetectionModel

from export.candidates import Candidates
from export.convert import convert
from export.optimize import optimize
from export.rewrite import rewrite
from export.sources.checkpoint import load_checkpoint
from model.registration import architecture, register


@cache
def graph_of(source: str | Path) -> onnx.ModelProto:
    """The graph of a checkpoint, or of an architecture that is not trained; not to be changed.

    Args:
        source: a path, or a name such as "yolov8n-fla".
    """
    if isinstance(source, Path):
        return optimize(load_checkpoint(source).graph((160, 160), static=False))
    register()
    torch.manual_seed(0)
    network = DetectionModel(architecture(source), nc=3, verbose=False).eval()
    return optimize(convert(Candidates(rewrite(network)), (160, 160), static=False))
