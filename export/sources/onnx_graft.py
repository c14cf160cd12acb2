"""Gives an exported network the artifact's input and output: surgery on ONNX graphs.

exported ─widened─► float32 ─at_served_opset─► 17 or 18 ─batch_freed─► any batch ─grafted─► artifact
"""

from collections.abc import Iterable, Iterator
from copy import deepcopy
from graphlib import TopologicalSorter

import numpy as np
import onnx
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from export.candidates import MAX_CANDIDATES
from export.convert import OPSET

NEWEST_OPSET = 18  # see `OPSET`
IR_VERSION = 8  # the one that belongs to these opsets

# Both are standard operators as opset 17 and 18 have them in common.
FRONT = """
front (uint8[batch, height, width, 3] images) => (float[batch, 3, height, width] pixels)
<float one_255th = {0.00392156862745098}>
{
    planes = Transpose <perm = [0, 3, 1, 2]> (images)
    bytes = Cast <to = 1> (planes)
    pixels = Mul (bytes, one_255th)
}
"""
BACK = """
back (float[batch, channels, anchors] predictions) => (float[batch, k, 6] candidates)
<int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] four = {4},
 int64[1] end = {2147483647}, int64[3] four_rows = {1, 4, 1}, int64[1] most = {MAX_CANDIDATES},
 float half = {0.5}>
{
    xywh = Slice (predictions, zero, four, one)
    scores = Slice (predictions, four, end, one)
    class_ids = ArgMax <axis = 1> (scores)
    best_scores = GatherElements <axis = 1> (scores, class_ids)
    anchor_count = Shape <start = 2> (best_scores)
    k = Min (anchor_count, most)
    chosen_scores, chosen = TopK <axis = 2> (best_scores, k)
    chosen_class_ids = GatherElements <axis = 2> (class_ids, chosen)
    chosen_classes = Cast <to = 1> (chosen_class_ids)
    chosen_in_rows = Expand (chosen, four_rows)
    chosen_xywh = GatherElements <axis = 2> (xywh, chosen_in_rows)
    centre = Slice (chosen_xywh, zero, two, one)
    size = Slice (chosen_xywh, two, four, one)
    half_size = Mul (size, half)
    top_left = Sub (centre, half_size)
    bottom_right = Add (centre, half_size)
    rows = Concat <axis = 1> (top_left, bottom_right, chosen_scores, chosen_classes)
    candidates = Transpose <perm = [0, 2, 1]> (rows)
}
""".replace("MAX_CANDIDATES", str(MAX_CANDIDATES))


def has_half(model: ModelProto) -> bool:
    """Whether any number in it is a float16."""
    graph = model.graph
    values = (*graph.input, *graph.output)
    return any(tensor.data_type == TensorProto.FLOAT16 for tensor in tensors(model)) or any(
        value.type.tensor_type.elem_type == TensorProto.FLOAT16 for value in values
    )


def widened(model: ModelProto) -> ModelProto:
    """A copy that computes in float32 what the model computes in float16.

    Every float16 number is a float32 number, so the weights stay what they are.
    """
    wide = deepcopy(model)
    graph = wide.graph
    for tensor in tensors(wide):
        if tensor.data_type == TensorProto.FLOAT16:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.FLOAT
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    del graph.value_info[:]  # it tells of float16
    # ONNX Runtime's float16 converter, which ultralytics uses, appends its casts at the end.
    nodes = [*in_order(graph.node)]
    del graph.node[:]
    graph.node.extend(nodes)
    return wide


def in_order(nodes: Iterable[NodeProto]) -> list[NodeProto]:
    """Each node behind those whose outputs it takes."""
    nodes = list(nodes)
    maker = {name: i for i, node in enumerate(nodes) for name in node.output}
    takes = {
        i: {maker[name] for name in node.input if name in maker} for i, node in enumerate(nodes)
    }
    return [nodes[i] for i in TopologicalSorter(takes).static_order()]


def opset_of(model: ModelProto) -> int:
    """The version of the standard operators."""
    return max(
        int(opset.version) for opset in model.opset_import if opset.domain in ("", "ai.onnx")
    )


def at_served_opset(model: ModelProto) -> ModelProto:
    """A copy at opset 17 or 18, valid there.

    Raises:
        ValueError: it cannot be brought there.
    """
    version = opset_of(model)
    served = ModelProto()
    served.CopyFrom(model)
    try:
        if version < OPSET:
            served = onnx.version_converter.convert_version(model, OPSET)
        # Newer ones are only called so: onnx knows no way down for some of the operators, but
        # those of a detector have since got no more than new types and attributes. A graph that
        # uses one of these is not valid here.
        served_version = min(opset_of(served), NEWEST_OPSET)
        del served.opset_import[:]
        served.opset_import.append(helper.make_opsetid("", served_version))
        served.ir_version = IR_VERSION
        onnx.checker.check_model(served, full_check=True)
    except Exception as error:  # onnx has no common base of its exceptions
        raise ValueError(f"opset {version} does not convert to {OPSET}") from error
    return served


def batch_freed(model: ModelProto, batch: int) -> ModelProto:
    """A copy that takes any number of images, where only reshapes hold it to `batch`.

    What else may hold it, is not found here: compare the answers.

    Args:
        model: of fixed input shape.
        batch: the fixed batch.
    """
    free = deepcopy(model)
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    first = {value.name: first_dimension(value) for value in values}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    constants |= {
        node.output[0]: helper.get_node_attr_value(node, "value")
        for node in model.graph.node
        if node.op_type == "Constant" and node.attribute[0].name == "value"
    }
    for i, node in enumerate(free.graph.node):
        if node.op_type != "Reshape" or node.input[1] not in constants:
            continue
        shape = numpy_helper.to_array(constants[node.input[1]]).copy()
        if first.get(node.input[0]) == batch and shape.size and shape[0] == batch:
            shape[0] = 0  # which copies the input's
            # Under a name of its own, because nodes share constants.
            copied = numpy_helper.from_array(shape, f"/free/shape_{i}")
            free.graph.initializer.append(copied)
            node.input[1] = copied.name
    del free.graph.value_info[:]
    for value in (*free.graph.input, *free.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    return free


def first_dimension(value: onnx.ValueInfoProto) -> int | None:
    """Of a tensor's shape; None where it has none, or it is not fixed."""
    dimensions = value.type.tensor_type.shape.dim
    return dimensions[0].dim_value or None if dimensions else None


def grafted(model: ModelProto, fixed_hw: tuple[int, int] | None) -> ModelProto:
    """The network between uint8 images and the best candidates.

    Equal scores, as of anchor points whose sigmoid is 1, come in the order of their anchor
    points: the logits that would tell them apart are not among an exported file's outputs.

    Args:
        model: float32, one input (B, 3, H, W) RGB 0..1, one output (B, 4 + classes, A): centre
            x, centre y, width and height in input pixels, scores 0..1; any batch.
        fixed_hw: the only (height, width) in pixels that the result takes; None: any that the
            model takes.

    Returns:
        Input `images` uint8 (B, H, W, 3); output `candidates` float32 (B, K, 6): x1, y1, x2, y2
        in input pixels, score, class id, best first, K = min(1000, A).
    """
    network = deepcopy(model)
    del network.graph.value_info[:], network.metadata_props[:]
    network.graph.name, network.graph.doc_string = "network", ""
    # Its input and output, so that they can't be called as the artifact's are.
    onnx.compose.add_prefix(
        network,
        "/network/",
        rename_nodes=False,
        rename_edges=False,
        rename_initializers=False,
        rename_value_infos=False,
        inplace=True,
    )
    front = part(FRONT, model, prefix="/front/", keep_input=True)
    back = part(BACK, model, prefix="/back/", keep_input=False)
    joined = joined_at_their_ends(joined_at_their_ends(front, network), back)
    if fixed_hw is not None:
        dimensions = joined.graph.input[0].type.tensor_type.shape.dim
        dimensions[1].dim_value, dimensions[2].dim_value = fixed_hw
    return joined


def part(text: str, model: ModelProto, *, prefix: str, keep_input: bool) -> ModelProto:
    """A graph written as text, at the model's versions.

    Args:
        text: without a header.
        model: whose versions it takes.
        prefix: of all names but one.
        keep_input: the input has its name without the prefix, or else the output.
    """
    header = f'<ir_version: {model.ir_version}, opset_import: ["" : {opset_of(model)}]>'
    parsed = onnx.parser.parse_model(header + text)
    for i, node in enumerate(parsed.graph.node):
        node.name = f"{node.op_type}_{i}"
    named: ModelProto = onnx.compose.add_prefix(
        parsed, prefix, rename_inputs=not keep_input, rename_outputs=keep_input
    )
    return named


def joined_at_their_ends(first: ModelProto, second: ModelProto) -> ModelProto:
    """The first one's only output is the second one's only input."""
    ends = [(first.graph.output[0].name, second.graph.input[0].name)]
    joined: ModelProto = onnx.compose.merge_models(first, second, ends)
    return joined


def tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every constant, those in attributes among them."""
    yield from model.graph.initializer
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.t
