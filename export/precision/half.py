"""float16 where it is fast and safe, float32 where a value may leave float16's range.

float16 ends at 65504, has no number below 6e-8, and steps of half a pixel above 512. So these
keep float32 (`export.precision.regions` says how they are found):

- Attention, its convolutions included: its 1e-6 and the powers of it are no float16 numbers, its
  sums over all tokens do not fit, and activations of thousands grow in it before they shrink.
- Decoding: distributions to boxes, boxes to pixels.

Why no NaN or Inf comes from an attention: what goes in is float16, so at most 65504 by amount.
The rest is float32: projections stay below 1e15 even for weights whose amounts sum to 1e10 a row;
norms are taken of values of at least 1e-6 / softplus(scale); the normaliser is a sum of terms that
are not negative and one that is positive, and the weighted mean of values that it divides is no
larger than they are. What comes out is clipped to the largest float16 number before it becomes one.
Elsewhere values are as large as the network's own activations, tens behind a batch normalisation.

All this is for GPUs. On a CPU ONNX Runtime computes such a graph in float32, no faster, and rounds
next to none of its values, so that nothing overflows: see `rounding`.
"""

from copy import deepcopy
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from export.precision.graph import Wires, key, rebuilt
from export.precision.regions import find_regions

LARGEST = float(np.finfo(np.float16).max)
FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that computes in float16 wherever that is safe.

    Args:
        model: an optimised float32 network, its nodes in topological order.

    Returns:
        The same inputs and outputs, of the same types.
    """
    regions = find_regions(model)
    # What gives the output gives it in float32.
    halved = regions.convolutions | regions.between | regions.moves
    halved -= {value.name for value in model.graph.output}
    types = Types(model, halved)
    for node in model.graph.node:
        types.add(node)
    return rebuilt(model, types.nodes, types.constants.values())


def rounding(half: onnx.ModelProto) -> onnx.ModelProto:
    """The same, but that every float16 value is one on a CPU too, and Inf where it is none.

    There ONNX Runtime computes in float32, without casts to float16 and back between nodes. It
    has a Concat of float16, but runs a lone one in float32 as well; so two stand behind each value.
    """
    model = deepcopy(half)
    graph = onnx.shape_inference.infer_shapes(model).graph
    halved = {value.name for value in graph.value_info if value.type.tensor_type.elem_type == HALF}
    nodes = []
    for node in half.graph.node:
        computed = deepcopy(node)
        nodes.append(computed)
        for i, name in enumerate(node.output):
            if name in halved:
                steps = [f"{name}/computed", f"{name}/rounded", name]
                computed.output[i] = steps[0]
                nodes += [helper.make_node("Concat", [a], [b], axis=0) for a, b in pairwise(steps)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


class Types:
    """The graph under construction: a value crosses from type to type once, where first needed.

    Args:
        model: the float32 network.
        halved: nodes that compute in float16, as `key` names them.

    Attributes:
        nodes: so far.
        constants: by name, those of the float32 network too.
    """

    def __init__(self, model: onnx.ModelProto, halved: frozenset[str]) -> None:
        self._halved = halved
        self._wires = Wires(model)
        self._half_tensors: set[str] = set()
        self._crossed: dict[str, str] = {}
        self.nodes: list[NodeProto] = []
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}

    def add(self, original: NodeProto) -> None:
        """Adds a node in its type, behind the casts that it needs."""
        node = deepcopy(original)
        half = key(node) in self._halved
        if node.op_type not in ("ArgMax", "Shape"):  # which read either type
            # All but the first input of a Resize are its own: scales are always float32.
            count = 1 if node.op_type == "Resize" else len(node.input)
            for i in range(count):
                node.input[i] = self._constant_as(node.input[i], half)
                node.input[i] = self._value_as(node.input[i], half)
        if half:
            self._half_tensors.update(filter(self._wires.is_float, node.output))
            if node.op_type == "Cast":
                node.attribute[0].i = HALF
        self.nodes.append(node)

    def _constant_as(self, name: str, half: bool) -> str:
        constant = self.constants.get(name)
        if constant is None or constant.data_type != FLOAT or not half:
            return name
        if name not in self._crossed:
            values = numpy_helper.to_array(constant).clip(-LARGEST, LARGEST).astype(np.float16)
            self._crossed[name] = f"{name}/half"
            self.constants[f"{name}/half"] = numpy_helper.from_array(values, f"{name}/half")
        return self._crossed[name]

    def _value_as(self, name: str, half: bool) -> str:
        if not self._wires.is_float(name) or half == (name in self._half_tensors):
            return name
        if name not in self._crossed:
            source = name
            if half:  # a cast would make Inf of what is too large
                source = f"{name}/clipped"
                bounds = [self._scalar(-LARGEST), self._scalar(LARGEST)]
                self._append("Clip", [name, *bounds], source)
            self._crossed[name] = f"{name}/{'half' if half else 'float'}"
            self._append("Cast", [source], self._crossed[name], to=HALF if half else FLOAT)
        return self._crossed[name]

    def _append(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> None:
        self.nodes.append(helper.make_node(operator, inputs, [output], output, **attributes))

    def _scalar(self, value: float) -> str:
        name = f"float16_limit/{'low' if value < 0 else 'high'}"
        self.constants[name] = numpy_helper.from_array(np.array(value, np.float32), name)
        return name
