"""Reading an ONNX graph by its wires, and putting together a changed one."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from copy import deepcopy

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper


def key(node: NodeProto) -> str:
    """A node's first output: unlike its name, every node has one and no other has the same."""
    return str(node.output[0])


class Wires:
    """Who gives and who takes the float32 values that are no constants.

    Attributes:
        nodes: that give such values, in the graph's order.
        producer: by tensor.
        consumers: by tensor.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = onnx.shape_inference.infer_shapes(model).graph
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.types = {
            value.name: value.type.tensor_type.elem_type
            for value in (*graph.input, *graph.value_info, *graph.output)
            if value.name not in self.constants
        }
        self.nodes = [node for node in graph.node if any(map(self.is_float, node.output))]
        self.producer: dict[str, NodeProto] = {}
        self.consumers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self.nodes:
            self.producer |= dict.fromkeys(filter(self.is_float, node.output), node)
            for name in set(filter(self.is_float, node.input)):
                self.consumers[name].append(node)

    def is_float(self, name: str) -> bool:
        """Whether the tensor is float32 and no constant."""
        return self.types.get(name) == TensorProto.FLOAT

    def taken(self, node: NodeProto) -> list[str]:
        """The tensors that a node takes from another one."""
        return [name for name in node.input if name in self.producer]

    def is_convolution(self, node: NodeProto) -> bool:
        """Whether it is one, and not an expectation over the bins of a distribution."""
        if node.op_type != "Conv":
            return False
        weight = self.constants.get(node.input[1])
        if weight is None:
            return True
        values = numpy_helper.to_array(weight)
        return not np.array_equal(values.ravel(), np.arange(values.size))


def rebuilt(
    model: onnx.ModelProto, nodes: Sequence[NodeProto], constants: Iterable[TensorProto]
) -> onnx.ModelProto:
    """The model with other nodes, checked; of the constants it holds those that they take.

    The types of the values inside, which the nodes may have changed, are left out.
    """
    copy = deepcopy(model)
    del copy.graph.node[:], copy.graph.initializer[:], copy.graph.value_info[:]
    copy.graph.node.extend(nodes)
    taken = {name for node in nodes for name in node.input}
    copy.graph.initializer.extend(tensor for tensor in constants if tensor.name in taken)
    onnx.checker.check_model(copy, full_check=True)
    return copy
