"""ONNX files as sources, on a detector of a few weights whose every answer is computed."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from export.errors import CheckpointRefused, ExportError, ModelUnsupported
from export.optimize import FORBIDDEN_OPERATORS, optimize
from export.sources.onnx_file import architecture_name
from export.sources.onnx_graft import at_served_opset, has_half
from export.sources.onnx_source import OnnxSource, level_strides, load_onnx
from export.verification.compare import candidate_difference
from tests.support.artifacts import tiny_artifact

CLASSES = 2
DESCRIPTION = {
    "description": "Ultralytics YOLOv8n model trained on cells.yaml",
    "task": "detect",
    "stride": "8",
    "names": "{0: 'red', 1: \"it's white\"}",
    "channels": "3",
    "end2end": "False",
}
# One level of stride 8: boxes in pixels, and scores, each from the pixels of its cell.
NETWORK = """
tiny (float[BATCH, 3, HEIGHT, WIDTH] images) => (float[BATCH, ROWS, anchors] output0)
<int64[3] flat = {BATCH_OR_COPY, 6, -1}, int64[1] zero = {0}, int64[1] one = {1},
 int64[1] four = {4}, int64[1] six = {6}, float[1, 4, 1] scale = {90, 80, 30, 20}>
{
    maps = Conv <kernel_shape = [8, 8], strides = [8, 8]> (images, weight)
    rows = Reshape (maps, flat)
    distances = Slice (rows, zero, four, one)
    logits = Slice (rows, four, six, one)
    boxes = Mul (distances, scale)
    scores = Sigmoid (logits)
    output0 = Concat <axis = 1> (boxes, scores)
}
"""


def network(
    *, batch: int | None = None, hw: tuple[int, int] | None = None, opset: int = 18
) -> ModelProto:
    """A detector as ultralytics would export it; None: any."""
    height, width = hw or ("height", "width")
    text = NETWORK.replace("BATCH_OR_COPY", str(batch or 0)).replace("ROWS", str(4 + CLASSES))
    text = text.replace("BATCH", str(batch or "batch"))
    text = text.replace("HEIGHT", str(height)).replace("WIDTH", str(width))
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>' + text)
    weight = np.random.default_rng(1).normal(0, 0.2, (4 + CLASSES, 3, 8, 8)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "weight"))
    helper.set_model_props(model, DESCRIPTION)
    return model


def saved(model: ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def candidates(graph: ModelProto, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    answer: NDArray[np.float32] = session.run(["candidates"], {"images": images})[0]
    return answer


def random_images(count: int, hw: tuple[int, int]) -> NDArray[np.uint8]:
    return np.random.default_rng(2).integers(0, 256, (count, *hw, 3)).astype(np.uint8)


def check_equal(source: OnnxSource, graph: ModelProto, hw: tuple[int, int], count: int) -> None:
    """Each image of a batch is answered by the best of what the file itself predicts for it."""
    images = random_images(count, hw)
    batch = candidates(graph, images)
    assert batch.shape == (count, min(1000, hw[0] * hw[1] // 64), 6)
    for rows, image in zip(batch, images, strict=True):
        x = image.transpose(2, 0, 1)[None].astype(np.float32) / 255
        difference = candidate_difference(rows, source.predict(x))
        assert difference.boxes_px < 1e-3
        assert difference.scores < 1e-6
        assert (np.diff(rows[:, 4]) <= 0).all()


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_a_dynamic_file_answers_any_batch_and_size(tmp_path: Path, count: int) -> None:
    source = load_onnx(saved(network(), tmp_path))
    assert (source.fixed_hw, source.file.batch, source.strides) == (None, None, (8,))
    graph = optimize(source.graph((256, 256), static=False))
    check_equal(source, graph, (48, 80), count)
    check_equal(source, graph, (256, 264), count)  # 1056 anchor points


@pytest.mark.parametrize("batch", [1, 4])
def test_a_fixed_batch_is_freed(tmp_path: Path, batch: int) -> None:
    source = load_onnx(saved(network(batch=batch, hw=(48, 80)), tmp_path))
    assert source.fixed_hw == (48, 80)
    graph = optimize(source.graph((48, 80), static=True))
    for count in (1, 2, 3, 8):
        check_equal(source, graph, (48, 80), count)


def test_a_fixed_batch_is_freed_where_the_size_is_dynamic(tmp_path: Path) -> None:
    source = load_onnx(saved(network(batch=1), tmp_path))
    graph = optimize(source.graph((64, 64), static=False))
    check_equal(source, graph, (48, 80), 3)


def test_a_constant_that_nodes_share_is_changed_for_the_reshape_alone(tmp_path: Path) -> None:
    model = network(batch=1, hw=(48, 80))
    shape = numpy_helper.from_array(np.array([1, 6, 60]), "flat")
    model.graph.initializer[0].CopyFrom(shape)
    model.graph.node[1].output[0] = "reshaped"
    model.graph.node.insert(2, helper.make_node("ConstantOfShape", ["flat"], ["zeros"]))
    model.graph.node.insert(3, helper.make_node("Add", ["reshaped", "zeros"], ["rows"]))
    source = load_onnx(saved(model, tmp_path))
    check_equal(source, source.graph((48, 80), static=True), (48, 80), 2)


def test_a_batch_inside_the_layers_is_refused(tmp_path: Path) -> None:
    model = network(batch=1, hw=(48, 80))
    # Two axes in one, as attention does with batch and heads.
    merged = helper.make_node("Reshape", ["maps", "merged_shape"], ["merged"])
    model.graph.node.insert(1, merged)
    model.graph.node[2].input[0] = "merged"
    shape = np.array([6, 1, 60])
    model.graph.initializer.append(numpy_helper.from_array(shape, "merged_shape"))
    source = load_onnx(saved(model, tmp_path))
    with pytest.raises(ModelUnsupported, match=r"batch of 1 is part of .*dynamic=True"):
        source.graph((48, 80), static=True)


def test_the_artifact_keeps_its_contract(tmp_path: Path) -> None:
    source = load_onnx(saved(network(), tmp_path))
    assert source.architecture == "yolov8n"
    assert source.class_names == ("red", "it's white")
    assert re.fullmatch("[0-9a-f]{64}", source.sha256)
    graph = source.graph((64, 96), static=True)
    assert [value.name for value in (*graph.graph.input, *graph.graph.output)] == [
        *("images", "candidates")
    ]
    dimensions = graph.graph.input[0].type.tensor_type.shape.dim
    assert [dimension.dim_value or dimension.dim_param for dimension in dimensions] == [
        "batch",
        64,
        96,
        3,
    ]
    assert not graph.metadata_props
    optimized = optimize(graph)
    assert not FORBIDDEN_OPERATORS & {node.op_type for node in optimized.graph.node}


def test_an_inner_name_may_be_one_of_ours(tmp_path: Path) -> None:
    model = network()
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [
                {"output0": "candidates", "maps": "pixels"}.get(name, name) for name in names
            ]
    model.graph.output[0].name = "candidates"
    source = load_onnx(saved(model, tmp_path))
    check_equal(source, optimize(source.graph((64, 64), static=False)), (48, 80), 2)


@pytest.mark.parametrize("opset", [11, 12, 13, 16, 17, 18, 19, 20, 21, 22, 23])
def test_every_opset_becomes_one_that_is_served(tmp_path: Path, opset: int) -> None:
    source = load_onnx(saved(network(opset=opset), tmp_path))
    graph = optimize(source.graph((64, 64), static=False))
    assert graph.opset_import[0].version in (17, 18)
    check_equal(source, graph, (48, 80), 2)


def test_what_older_opsets_do_not_have_is_refused(tmp_path: Path) -> None:
    model = network(opset=20)
    model.graph.node[-1].input[1] = "bent"
    model.graph.node.insert(6, helper.make_node("Gelu", ["scores"], ["bent"]))
    source = load_onnx(saved(model, tmp_path))
    with pytest.raises(ModelUnsupported, match=r"opset 20 does not convert.*opset=17"):
        source.graph((64, 64), static=False)


def halved(model: ModelProto, *, keep_io: bool) -> ModelProto:
    """In float16, with the casts at its ends where ONNX Runtime's converter puts them."""
    graph = model.graph
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    if not keep_io:
        for value in (*graph.input, *graph.output):
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
        return model
    graph.node[0].input[0], graph.node[-1].output[0] = "images16", "output16"
    graph.node.append(helper.make_node("Cast", ["images"], ["images16"], to=TensorProto.FLOAT16))
    graph.node.append(helper.make_node("Cast", ["output16"], ["output0"], to=TensorProto.FLOAT))
    return model


@pytest.mark.parametrize("keep_io", [True, False])
def test_a_file_in_float16_is_widened(tmp_path: Path, keep_io: bool) -> None:
    """What it then predicts is what float32 makes of the same weights."""
    source = load_onnx(saved(halved(network(), keep_io=keep_io), tmp_path))
    graph = optimize(source.graph((64, 64), static=False))
    assert not has_half(graph)
    assert [node.op_type for node in graph.graph.node].count("Cast") == 2  # pixels, class ids
    check_equal(source, graph, (48, 80), 2)

    rounded = network()
    for tensor in rounded.graph.initializer:
        if tensor.name == "weight":
            values = numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, "weight"))
    x = np.random.default_rng(3).random((1, 3, 48, 80), dtype=np.float32)
    exact = load_onnx(saved(rounded, tmp_path)).predict(x)
    np.testing.assert_allclose(source.predict(x), exact, rtol=1e-5, atol=1e-5)


def test_a_file_that_float16_breaks_is_refused(tmp_path: Path) -> None:
    model = network()
    weight = numpy_helper.to_array(model.graph.initializer[-1]) * 3e4
    model.graph.initializer[-1].CopyFrom(numpy_helper.from_array(weight, "weight"))
    path = saved(halved(model, keep_io=True), tmp_path)
    with pytest.raises(ModelUnsupported, match=r"away from those in float16.*in float32"):
        load_onnx(path)


Change = Callable[[ModelProto], object]


def described(**values: str | None) -> Change:
    """Sets entries of the metadata; None removes them."""

    def change(model: ModelProto) -> None:
        description = {entry.key: entry.value for entry in model.metadata_props} | values
        helper.set_model_props(model, {k: v for k, v in description.items() if v is not None})

    return change


def with_node(node: onnx.NodeProto) -> Change:
    return lambda model: model.graph.node.append(node)


def with_dimension(axis: int, value: int) -> Change:
    def change(model: ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = value

    return change


def with_second_output(model: ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("maps", TensorProto.FLOAT, None))


def with_uint8_input(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8


def with_control_flow(model: ModelProto) -> None:
    branch = onnx.parser.parse_graph(
        "g () => (float[1] y) { y = Constant <value_floats = [1.0]> () }"
    )
    model.graph.node.append(
        helper.make_node("If", ["always"], ["either"], then_branch=branch, else_branch=branch)
    )


CANARY = "__import__('pathlib').Path('canary').touch()"
REFUSED: dict[str, tuple[Change, str]] = {
    "no metadata": (lambda model: model.ClearField("metadata_props"), "lacks task, names, stride"),
    "no names": (described(names=None), "lacks names"),
    "names that are code": (described(names=f"{{0: {CANARY}}}"), "not one name for each class id"),
    "names that skip an id": (described(names="{0: 'a', 2: 'b'}"), "not one name for each class"),
    "names that are no texts": (described(names="{0: 1, 1: 2}"), "not one name for each class id"),
    "names of lists": (described(names="{[]: 'a'}"), "not one name for each class id"),
    "names nested too deep": (described(names="[" * 100_000), "not one name for each class id"),
    "more names than rows": (described(names="{0: 'a', 1: 'b', 2: 'c'}"), r"7, anchor points"),
    "a stride of nothing": (described(stride="0"), "`stride` is '0'"),
    "a huge stride": (described(stride="256"), "`stride` is '256'"),
    "a stride that is no number": (described(stride="eight"), "`stride` is 'eight'"),
    "another stride": (described(stride="16"), "not those of levels up to stride 16"),
    "segmentation": (described(task="segment"), "task 'segment', not detect"),
    "grey images": (described(channels="1"), "1 channels, not 3"),
    "end to end": (described(end2end="True"), "end2end=False"),
    "NMS": (with_node(helper.make_node("NonMaxSuppression", ["a", "b"], ["c"])), "nms=False"),
    "int8": (with_node(helper.make_node("QuantizeLinear", ["a", "b"], ["c"])), "int8 already"),
    "foreign operators": (
        with_node(helper.make_node("Evil", ["a"], ["b"], domain="evil.org")),
        "operators of evil.org",
    ),
    "control flow": (with_control_flow, "control flow, If"),
    "four channels": (with_dimension(1, 4), r"input is \?x4x\?x\? FLOAT"),
    "one fixed side": (with_dimension(2, 64), "only one side"),
    "two outputs": (with_second_output, "1 and 2"),
    "bytes as input": (with_uint8_input, "UINT8, not"),
}


@pytest.mark.parametrize(("change", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_other_models_are_refused_in_one_line(
    change: Change, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = network()
    change(model)
    with pytest.raises(ModelUnsupported, match=words) as refused:
        load_onnx(saved(model, tmp_path))
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(str(tmp_path))
    assert len(str(refused.value)) < 300 + len(str(tmp_path))
    assert not (tmp_path / "canary").exists()


def test_a_size_off_the_stride_and_an_artifact_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelUnsupported, match="60x80, which is no multiple of its stride, 8"):
        load_onnx(saved(network(batch=1, hw=(60, 80)), tmp_path))
    with pytest.raises(ModelUnsupported, match="an artifact already"):
        load_onnx(tiny_artifact(tmp_path / "tiny.onnx"))
    with pytest.raises(CheckpointRefused, match="No such file"):
        load_onnx(tmp_path / "no.onnx")


def test_a_fixed_size_is_the_only_one(tmp_path: Path) -> None:
    source = load_onnx(saved(network(batch=1, hw=(48, 80)), tmp_path))
    with pytest.raises(ModelUnsupported, match=r"\(48, 80\) only.*not \(64, 64\)"):
        source.graph((64, 64), static=True)


def test_weights_in_another_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(network(), path, save_as_external_data=True, size_threshold=0)
    with pytest.raises(CheckpointRefused, match="in another file; put them into one"):
        load_onnx(path)


def test_what_onnx_runtime_cannot_load_is_refused(tmp_path: Path) -> None:
    model = network()
    model.graph.node[0].input[1] = "missing"
    with pytest.raises(CheckpointRefused, match="ONNX Runtime cannot run it") as refused:
        load_onnx(saved(model, tmp_path))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"\x00", b"PK\x03\x04 no onnx", b"\x08\x08" * 9])
def test_another_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(CheckpointRefused, match="not a complete ONNX file"):
        load_onnx(path)


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    content = network().SerializeToString()
    path = tmp_path / "model.onnx"
    for length in range(0, len(content), 41):
        path.write_bytes(content[:length])
        with pytest.raises(ExportError):
            load_onnx(path)


def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path: Path) -> None:
    model = network(batch=1, hw=(48, 80))
    content = model.SerializeToString()
    weights = content.index(model.graph.initializer[-1].raw_data)
    rng = np.random.default_rng(0)
    path, refused = tmp_path / "model.onnx", list[str]()
    for _ in range(100):
        damaged = bytearray(content)
        position = int(rng.integers(len(content) - len(model.graph.initializer[-1].raw_data)))
        position += len(model.graph.initializer[-1].raw_data) if position >= weights else 0
        damaged[position] = int(rng.integers(256))
        path.write_bytes(damaged)
        try:
            load_onnx(path).graph((48, 80), static=True)
        except ExportError as error:
            refused.append(str(error))
    assert len(refused) > 30
    assert not [line for line in refused if "\n" in line]


@pytest.mark.parametrize(
    ("stride", "hw", "anchors", "strides"),
    [
        (32, (64, 96), 96 + 24 + 6, (8, 16, 32)),
        (64, (128, 128), 256 + 64 + 16 + 4, (8, 16, 32, 64)),
        (32, (64, 64), 256 + 64 + 16 + 4, (4, 8, 16, 32)),
    ],
)
def test_strides_follow_from_the_anchor_points(
    stride: int, hw: tuple[int, int], anchors: int, strides: tuple[int, ...]
) -> None:
    assert level_strides(Path("m"), stride, hw, anchors) == strides
    for wrong in (anchors - 1, anchors + 1):
        with pytest.raises(ModelUnsupported, match=f"{wrong} anchor points"):
            level_strides(Path("m"), stride, hw, wrong)


@pytest.mark.parametrize(
    ("description", "name"),
    [
        ("Ultralytics YOLOv8n model ", "yolov8n"),
        ("Ultralytics YOLOv8x-p6 model trained on coco.yaml", "yolov8x-p6"),
        ("Ultralytics best model", "unknown"),
        ("", "unknown"),
    ],
)
def test_the_architecture_is_read_from_the_description(description: str, name: str) -> None:
    assert architecture_name(description) == name


def test_the_file_itself_stays_as_it_is(tmp_path: Path) -> None:
    """Neither conversion nor grafting changes what later calls start from."""
    source = load_onnx(saved(network(batch=1, hw=(48, 80), opset=12), tmp_path))
    before = source.model.SerializeToString()
    first = source.graph((48, 80), static=True).SerializeToString()
    assert source.model.SerializeToString() == before
    assert source.graph((48, 80), static=True).SerializeToString() == first
    assert at_served_opset(source.model) is not source.model
