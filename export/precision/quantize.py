"""int8 for convolutions, from calibration images, as QuantizeLinear and DequantizeLinear.

A convolution is quantised where that pays: its input has enough channels to fill integer
instructions (an image's three have not), and an activation follows it. So the head's last
convolutions, which give scores and distributions, stay in float32, and so do attention and
decoding (`export.precision.regions`). What stands between convolutions computes in float32 too.

One layout serves two kinds of runtime:

- TensorRT takes int8 with a zero point of 0, and biases in float32. So activations and weights are
  symmetric, weights with a scale for each output channel.
- ONNX Runtime on x86 has integer convolutions for unsigned activations only. It makes signed ones
  unsigned where a QuantizeLinear has one DequantizeLinear with one consumer. So every convolution
  has a pair of its own at its input; and as SiLU, x · sigmoid(x), takes its input twice, a Clip
  stands before it: at -10, where SiLU is next to 0, so that no step of int8 is spent below.

`onnxruntime.quantization` has no such layout: what it writes with a zero point of 0 runs slower
than float32.
"""

from collections.abc import Iterable
from copy import deepcopy

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from export.precision.calibration import value_ranges
from export.precision.graph import Wires, key, rebuilt
from export.precision.regions import find_regions

MIN_CHANNELS = 8
LARGEST = 127  # -128 stays unused, so that the range is symmetric
SILU_ENDS = -10.0  # SiLU(-10) = -0.0005, a hundredth of the steps that are usual behind it
SMALLEST_AMOUNT = 1e-6  # of a value that was 0 on all images: a scale must not be


def quantize(model: onnx.ModelProto, images: Iterable[NDArray[np.uint8]]) -> onnx.ModelProto:
    """A copy whose convolutions compute in int8.

    Args:
        model: an optimised float32 network with the one input `images`.
        images: to calibrate with, (B, H, W, 3) uint8 each, at least one, letterboxed as those that
            will be served; some dozens of them.

    Returns:
        The same inputs and outputs, of the same types. The largest amount that a convolution took
        on a calibration image, or gave where it matters, is the largest it can take or give.
    """
    wires = Wires(model)
    trunk = find_regions(model).convolutions
    chosen = {key(node) for node in wires.nodes if key(node) in trunk and pays(node, wires)}
    taken = {name: node.input[0] for node in wires.nodes if (name := key(node)) in chosen}
    ranges = value_ranges(model, sorted({*taken, *taken.values()}), images)

    graph = Construction(model)
    for node in model.graph.node:
        if key(node) not in chosen:
            graph.nodes.append(node)
            continue
        before, (low, high) = ranges[node.input[0]], ranges[key(node)]
        after = scale_of(max(low, activation_ends(node, wires)), high)
        graph.add_quantised(node, scale_of(*before), after, silu=feeds_silu(node, wires))
    return rebuilt(model, graph.nodes, graph.constants.values())


def pays(convolution: NodeProto, wires: Wires) -> bool:
    """Whether integers are faster, in a place where they can be used."""
    weight = wires.constants.get(convolution.input[1])
    if weight is None or weight.dims[1] < MIN_CHANNELS:
        return False
    followers = wires.consumers[key(convolution)]
    activated = len(followers) == 1 and followers[0].op_type in ("Clip", "LeakyRelu", "Relu")
    return activated or feeds_silu(convolution, wires)


def feeds_silu(convolution: NodeProto, wires: Wires) -> bool:
    """Whether what follows is x · sigmoid(x), and only that."""
    followers = wires.consumers[key(convolution)]
    return sorted(node.op_type for node in followers) == ["Mul", "Sigmoid"]


def activation_ends(convolution: NodeProto, wires: Wires) -> float:
    """The value below which what follows gives nothing, so that no step is spent there."""
    if feeds_silu(convolution, wires):
        return SILU_ENDS
    (follower,) = wires.consumers[key(convolution)]
    return 0.0 if follower.op_type == "Relu" else -np.inf


def scale_of(low: float, high: float) -> np.float32:
    """The step between two int8 numbers that just reaches the larger amount of the two."""
    return np.float32(max(-low, high, SMALLEST_AMOUNT) / LARGEST)


class Construction:
    """The graph under construction.

    Attributes:
        nodes: so far.
        constants: by name, those of the float32 network too.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, TensorProto] = {
            tensor.name: tensor for tensor in model.graph.initializer
        }

    def add_quantised(
        self, original: NodeProto, before: np.float32, after: np.float32, *, silu: bool
    ) -> None:
        """Adds a convolution in int8.

        Args:
            original: in float32.
            before: scale of its input.
            after: scale of its output.
            silu: SiLU follows.
        """
        node = deepcopy(original)
        output = key(node)
        node.input[0] = self.quantised(node.input[0], f"{output}/input", before)
        node.input[1] = self.quantised_weight(node, before)
        node.output[0] = f"{output}/exact"
        self.nodes.append(node)
        if not silu:
            self.quantised(node.output[0], output, after)
            return
        value = self.quantised(node.output[0], f"{output}/rounded", after)
        end = self.constant("silu_ends", np.float32(SILU_ENDS))
        self.add("Clip", [value, end], output)

    def quantised(self, name: str, output: str, scale: np.float32) -> str:
        """Rounds a value to int8 and back; returns the output's name."""
        step = self.constant(f"{output}/scale", scale)
        # One for each pair, because ONNX Runtime merges pairs with the same constants.
        zero = self.constant(f"{output}/zero", np.int8(0))
        self.add("QuantizeLinear", [name, step, zero], f"{output}/int8")
        self.add("DequantizeLinear", [f"{output}/int8", step, zero], output)
        return output

    def quantised_weight(self, node: NodeProto, before: np.float32) -> str:
        """The weight of a convolution from int8, a scale for each output channel."""
        weight = numpy_helper.to_array(self.constants[node.input[1]])  # (out, in, kernel, kernel)
        amounts = np.abs(weight).reshape(len(weight), -1).max(1)  # (out,)
        scales = np.maximum(amounts, SMALLEST_AMOUNT) / LARGEST
        if len(node.input) > 2:
            # ONNX Runtime makes the bias an int32 in steps of both scales; it has to fit.
            bias = numpy_helper.to_array(self.constants[node.input[2]])
            scales = np.maximum(scales, np.abs(bias) / (before * 2.0**30))
        steps = scales.astype(np.float32)
        rounded = np.rint(weight / steps[:, None, None, None]).clip(-LARGEST, LARGEST)
        name = f"{key(node)}/weight"  # a weight may serve several convolutions
        inputs = [
            self.constant(f"{name}/int8", rounded.astype(np.int8)),
            self.constant(f"{name}/scale", steps),
            self.constant(f"{name}/zero", np.zeros(len(steps), np.int8)),
        ]
        self.add("DequantizeLinear", inputs, f"{name}/rounded", axis=0)
        return f"{name}/rounded"

    def constant(self, name: str, value: NDArray[np.generic] | np.generic) -> str:
        """Adds a constant and returns its name."""
        self.constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def add(self, operator: str, inputs: list[str], output: str, **attributes: int) -> None:
        """Adds a node that is named as its output."""
        self.nodes.append(helper.make_node(operator, inputs, [output], output, **attributes))  # type: ignore[arg-type]
