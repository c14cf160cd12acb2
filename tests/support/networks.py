"""Whole networks as optimised float32 graphs, for tests of what is done to them."""

import io
import warnings
from functools import cache
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn
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


def traced(module: nn.Module, example: Tensor, name: str = "x") -> onnx.ModelProto:
    """The graph of a module, not optimised, for any batch and size of maps or of uint8 images."""
    height = 1 if example.dtype == torch.uint8 else 2
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            (example,),
            buffer,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=17,
            input_names=[name],
            dynamic_axes={name: {0: "batch", height: "height", height + 1: "width"}},
        )
    return onnx.load_model_from_string(buffer.getvalue())
