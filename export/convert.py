"""From a traced module to an ONNX graph."""

import io
import warnings

import onnx
import torch
from torch.jit._trace import TracerWarning

from export.candidates import Candidates

# From 19 on, some ONNX Runtime versions put Resize on the CPU; TensorRT 10 and OpenVINO read 17.
OPSET = 17


def convert(candidates: Candidates, input_hw: tuple[int, int], *, static: bool) -> onnx.ModelProto:
    """Traces the module into a graph with input `images` and output `candidates`.

    Args:
        candidates: the whole graph as a module.
        input_hw: (height, width) in pixels to trace with.
        static: fix height and width to `input_hw`; the batch is dynamic in either case.
    """
    axes = {0: "batch"} if static else {0: "batch", 1: "height", 2: "width"}
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # The tracing exporter: the newer one has frozen the batch at 1 (pytorch#148886).
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", TracerWarning)
        warnings.simplefilter("ignore", UserWarning)  # it mistrusts a dynamic slice that we test
        torch.onnx.export(
            candidates,
            # Two images: a batch of one could be traced into a graph that only takes one.
            (torch.zeros(2, *input_hw, 3, dtype=torch.uint8),),
            buffer,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["candidates"],
            dynamic_axes={"images": axes, "candidates": {0: "batch", 1: "candidates"}},
        )
    return onnx.load_model_from_string(buffer.getvalue())
