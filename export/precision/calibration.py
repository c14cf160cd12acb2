"""How large the values inside of a network get on images."""

from collections.abc import Iterable, Sequence
from copy import deepcopy

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray


def value_ranges(
    model: onnx.ModelProto, tensors: Sequence[str], images: Iterable[NDArray[np.uint8]]
) -> dict[str, tuple[float, float]]:
    """Runs a network and notes the smallest and the largest value of some of its tensors.

    Images are run one by one, and nothing of one is kept for the next: the memory is that of one
    image. Extremes are taken, not percentiles or entropies: on a detector's maps the rare large
    value is the object that is looked for.

    Args:
        model: a network in float32 with the one input `images`.
        tensors: names of values in its graph.
        images: (B, H, W, 3) uint8 each, at least one.

    Returns:
        (smallest, largest) by name.
    """
    looking = deepcopy(model)
    del looking.graph.output[:]
    looking.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
    session = onnxruntime.InferenceSession(
        looking.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    ranges = dict.fromkeys(tensors, (np.inf, -np.inf))
    for image in images:
        for name, values in zip(tensors, session.run(None, {"images": image}), strict=True):
            low, high = ranges[name]
            ranges[name] = min(low, float(values.min())), max(high, float(values.max()))
    return ranges
