"""Reads what an ONNX file that ultralytics exported says of itself."""

import ast
import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from onnx import AttributeProto, ModelProto, TensorProto

from export.errors import CheckpointRefused, ModelUnsupported
from export.sources.onnx_graft import tensors
from server.inference.artifact import METADATA_KEY

AGAIN = "export it again from its checkpoint"
MAX_PIXELS = 2**27  # of a fixed input, all images together: 1.5 GB
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


@dataclass(frozen=True)
class OnnxFile:
    """A plain YOLOv8 as ultralytics exported it, by its own account.

    Attributes:
        path: the file.
        sha256: of it, 64 hex digits.
        model: standard operators only, no control flow, all weights in it; one input and one
            output of float32 or float16.
        architecture: such as "yolov8n"; or "unknown".
        class_names: the name of each class id.
        stride: of the coarsest detection level, in pixels.
        batch: how many images it takes at once; None where it takes any number.
        fixed_hw: the only (height, width) in pixels that it takes, multiples of the stride; None
            where it takes any such.
    """

    path: Path
    sha256: str
    model: ModelProto = field(repr=False)
    architecture: str
    class_names: tuple[str, ...]
    stride: int
    batch: int | None
    fixed_hw: tuple[int, int] | None


def read_onnx(path: Path) -> OnnxFile:
    """Reads a file that `YOLO(...).export(format="onnx")` wrote, and runs nothing.

    Raises:
        CheckpointRefused: the file is missing or damaged, or its weights lie in another one.
        ModelUnsupported: by its own account it is not the detection network of a YOLOv8 and no
            more than that.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointRefused(f"{path}: {error.strerror}") from None
    model = parse(path, content)
    description = {text(entry.key): text(entry.value) for entry in model.metadata_props}
    check_description(path, description)
    check_operators(path, model)
    batch, fixed_hw = input_shape(path, model)
    stride = largest_stride(path, description["stride"])
    if fixed_hw and any(side % stride for side in fixed_hw):
        raise ModelUnsupported(
            f"{path}: it takes {fixed_hw[0]}x{fixed_hw[1]}, which is no multiple of its stride, "
            f"{stride}"
        )
    return OnnxFile(
        path=path,
        sha256=hashlib.sha256(content).hexdigest(),
        model=model,
        architecture=architecture_name(description.get("description", "")),
        class_names=class_names(path, description["names"]),
        stride=stride,
        batch=batch,
        fixed_hw=fixed_hw,
    )


def parse(path: Path, content: bytes) -> ModelProto:
    """The model in a file, weights included.

    Raises:
        CheckpointRefused: it is no complete ONNX file, or its weights lie outside of it.
    """
    try:
        model = onnx.load_model_from_string(content)
        complete = bool(model.graph.node)
    except Exception:  # protobuf's error, and what damaged bytes may raise besides
        complete = False
    if not complete:
        raise CheckpointRefused(f"{path}: not a complete ONNX file")
    if model.graph.sparse_initializer or any(
        attribute.type in (AttributeProto.SPARSE_TENSOR, AttributeProto.TENSORS)
        for node in model.graph.node
        for attribute in node.attribute
    ):
        raise CheckpointRefused(f"{path}: it holds sparse weights, which no detector has")
    if any(tensor.data_location == TensorProto.EXTERNAL for tensor in tensors(model)):
        raise CheckpointRefused(
            f"{path}: its weights lie in another file; put them into one: "
            f"`onnx.save(onnx.load({path.name!r}), 'one-file.onnx')`"
        )
    # Older files list their weights among the inputs.
    weights = {tensor.name for tensor in model.graph.initializer}
    for value in [value for value in model.graph.input if value.name in weights]:
        model.graph.input.remove(value)
    return model


def text(value: str | bytes) -> str:
    """A string of a message; protobuf hands out as bytes what is no UTF-8."""
    return value if isinstance(value, str) else value.decode(errors="replace")


def check_description(path: Path, description: dict[str, str]) -> None:
    """Refuses what the metadata of an ultralytics export says that it is not.

    Raises:
        ModelUnsupported: an artifact, no ultralytics export, another task, or NMS inside.
    """
    if METADATA_KEY in description:
        raise ModelUnsupported(
            f"{path}: an artifact already; export the file that it was made from"
        )
    missing = [key for key in ("task", "names", "stride") if key not in description]
    if missing:
        raise ModelUnsupported(
            f"{path}: its metadata lacks {', '.join(missing)}; a file is expected that "
            "`YOLO(...).export(format='onnx')` wrote"
        )
    if description["task"] != "detect":
        raise ModelUnsupported(f"{path}: a model for the task {description['task']!r}, not detect")
    if description.get("channels", "3") != "3":
        raise ModelUnsupported(f"{path}: it takes {description['channels']} channels, not 3")
    if description.get("end2end") == "True":
        raise ModelUnsupported(
            f"{path}: an end-to-end head, which has no candidates: {AGAIN} with end2end=False"
        )


def check_operators(path: Path, model: ModelProto) -> None:
    """Refuses graphs that hold more than a network of standard operators.

    Raises:
        ModelUnsupported: NMS, quantised weights, control flow, or operators of others.
    """
    nodes = model.graph.node
    operators = {node.op_type for node in nodes}
    if "NonMaxSuppression" in operators:
        raise ModelUnsupported(f"{path}: NMS is part of it: {AGAIN} with nms=False")
    if operators & {"QuantizeLinear", "DequantizeLinear"}:
        raise ModelUnsupported(f"{path}: int8 already: {AGAIN} in float")
    foreign = {node.domain for node in nodes} - {"", "ai.onnx"}
    if foreign or model.functions:
        names = sorted(foreign | {function.domain for function in model.functions})
        raise ModelUnsupported(f"{path}: it holds operators of {', '.join(names)}")
    for node in nodes:
        if any(
            attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS)
            for attribute in node.attribute
        ):
            raise ModelUnsupported(f"{path}: it holds control flow, {node.op_type}")


def input_shape(path: Path, model: ModelProto) -> tuple[int | None, tuple[int, int] | None]:
    """The batch and the (height, width) that it takes, each None where it takes any.

    Raises:
        ModelUnsupported: not one input of three-channel images and one output.
    """
    inputs, outputs = model.graph.input, model.graph.output
    if (len(inputs), len(outputs)) != (1, 1):
        raise ModelUnsupported(
            f"{path}: a detector has one input and one output, this has {len(inputs)} and "
            f"{len(outputs)}"
        )
    if outputs[0].type.tensor_type.elem_type not in FLOATS:
        raise ModelUnsupported(f"{path}: its output is not float32 or float16")
    tensor = inputs[0].type.tensor_type
    sides = [dimension.dim_value or None for dimension in tensor.shape.dim]
    if len(sides) != 4 or sides[1] != 3 or tensor.elem_type not in FLOATS:
        shape = "x".join(str(side or "?") for side in sides)
        kind = TensorProto.DataType.Name(tensor.elem_type)
        raise ModelUnsupported(f"{path}: its input is {shape} {kind}, not ?x3x?x? of floats")
    batch, _, height, width = sides
    if any(side is not None and side < 0 for side in sides) or (
        (batch or 1) * (height or 1) * (width or 1) > MAX_PIXELS
    ):
        raise ModelUnsupported(
            f"{path}: its input is {'x'.join(str(side or '?') for side in sides)}, "
            f"that is negative or above {MAX_PIXELS} pixels"
        )
    if (height is None) != (width is None):
        raise ModelUnsupported(f"{path}: only one side of its input is fixed: {AGAIN}")
    return batch, (height, width) if height and width else None


def class_names(path: Path, written: str) -> tuple[str, ...]:
    """The names in class order, from the text of a dict such as "{0: 'cell'}".

    Raises:
        ModelUnsupported: it is something else, or not one name for each id from 0 on.
    """
    try:
        names = ast.literal_eval(written)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        names = None
    if (
        not isinstance(names, dict)
        or not names
        or set(names) != set(range(len(names)))
        or not all(isinstance(name, str) for name in names.values())
    ):
        raise ModelUnsupported(
            f"{path}: its metadata `names` has not one name for each class id: {written[:80]}"
        )
    return tuple(names[class_id] for class_id in range(len(names)))


def largest_stride(path: Path, written: str) -> int:
    """The stride in pixels.

    Raises:
        ModelUnsupported: the text is no power of two up to 128, twice what any YOLO has.
    """
    stride = int(written) if re.fullmatch("[0-9]{1,3}", written) else 0
    if not 1 <= stride <= 128 or stride & (stride - 1):
        raise ModelUnsupported(f"{path}: its metadata `stride` is {written[:80]!r}")
    return stride


def architecture_name(description: str) -> str:
    """Such as "yolov8n" of "Ultralytics YOLOv8n model trained on coco.yaml"; else "unknown"."""
    match = re.match(r"Ultralytics (YOLO[\w.-]*) model", description)
    return match[1].lower() if match else "unknown"
