"""When a GPU does not do the work of a session, and how that is found out."""

import logging
from collections.abc import Mapping
from pathlib import Path

import onnx
import onnxruntime
import pytest

from server.errors import ProviderUnavailable
from server.inference.artifact import operators
from server.inference.cuda.placement import (
    TO_CPU,
    TO_GPU,
    Node,
    Placement,
    copies_counted,
    nodes_by_provider,
    refuse_unless_on_gpu,
)
from server.inference.devices import CPU, CUDA
from server.inference.onnx_session import session_options
from tests.support.artifacts import tiny_artifact

# What ONNX Runtime 1.31.1's CUDA provider left to the CPU of the default weights, fp32 and fp16
# alike, with free dimensions. It copied one number from there.
LEFT_TO_THE_CPU = {
    "Gather": 14,
    "Concat": 12,
    "Slice": 8,
    "Cast": 7,
    "Unsqueeze": 6,
    "Min": 1,
    "Reshape": 1,
    "Equal": 1,
    "Where": 1,
}


def placement(
    on_cpu: Mapping[str, int], copies: Mapping[str, int] | None = None, on_gpu: str = "Conv"
) -> Placement:
    nodes = [Node(f"{each}_{i}", each) for each, count in on_cpu.items() for i in range(count)]
    there = {CUDA: (Node("layer", on_gpu),)} if on_gpu else {}
    return Placement({**there, CPU: tuple(nodes)} if nodes else there, copies or {})


def test_the_default_weights_leave_only_shapes_to_the_cpu(
    caplog: pytest.LogCaptureFixture,
) -> None:
    refuse_unless_on_gpu(placement(LEFT_TO_THE_CPU, {TO_GPU: 1}), CUDA, 0, fixed=False)
    assert caplog.records == []


@pytest.mark.parametrize("operator", ["Conv", "FusedConv", "MatMul", "TopK", "Resize", "Sigmoid"])
@pytest.mark.parametrize("fixed", [False, True])
def test_heavy_work_on_the_cpu_is_refused(operator: str, fixed: bool) -> None:
    with pytest.raises(ProviderUnavailable, match=f"GPU 2, but ONNX Runtime runs 2 {operator} of"):
        refuse_unless_on_gpu(placement({operator: 2, "Gather": 1}), CUDA, 2, fixed=fixed)


def test_a_model_that_is_wholly_on_the_cpu_is_refused_with_what_to_install() -> None:
    nowhere = placement({"Conv": 68}, on_gpu="")
    with pytest.raises(ProviderUnavailable, match=r"runs the model on the CPU; it needs driver"):
        refuse_unless_on_gpu(nowhere, CUDA, 0, fixed=False)


def test_a_session_of_one_shape_leaves_nothing_to_the_cpu() -> None:
    refuse_unless_on_gpu(placement({}), CUDA, 0, fixed=True)
    with pytest.raises(ProviderUnavailable, match="runs 12 Concat, 14 Gather of it on the CPU"):
        refuse_unless_on_gpu(placement({"Gather": 14, "Concat": 12}), CUDA, 0, fixed=True)


@pytest.mark.parametrize(
    ("copies", "fixed"),
    [({TO_CPU: 19, TO_GPU: 16}, False), ({TO_CPU: 1}, True), ({TO_GPU: 1}, True)],
)
def test_copies_in_the_middle_of_a_call_are_refused(copies: dict[str, int], fixed: bool) -> None:
    with pytest.raises(ProviderUnavailable, match=f"copies {sum(copies.values())} values between"):
        refuse_unless_on_gpu(placement({}, copies), CUDA, 0, fixed=fixed)


def test_what_is_unusual_on_the_cpu_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="server.inference.cuda.placement"):
        int8 = placement({**LEFT_TO_THE_CPU, "DequantizeLinear": 56}, {TO_GPU: 57})
        refuse_unless_on_gpu(int8, CUDA, 0, fixed=False)
    (record,) = caplog.records
    assert record.getMessage() == "beside shape arithmetic, the CPU runs 56 DequantizeLinear"


def with_copies(path: Path) -> onnx.ModelProto:
    model = onnx.load(path)
    for operator in (TO_CPU, TO_GPU, TO_GPU):
        model.graph.node.add(op_type=operator, input=["images"], output=[operator])
    return model


def test_the_operators_of_a_graph_are_read_without_the_onnx_package(tmp_path: Path) -> None:
    model = with_copies(tiny_artifact(tmp_path / "tiny.onnx"))
    expected = [node.op_type for node in model.graph.node]
    assert list(operators(model.SerializeToString())) == expected


def test_copies_are_counted_in_what_onnx_runtime_made_of_the_graph(tmp_path: Path) -> None:
    path = tiny_artifact(tmp_path / "tiny.onnx")
    options = session_options(1)
    with copies_counted(options) as copies:
        session = onnxruntime.InferenceSession(path, options, providers=[CPU])
        written = Path(options.optimized_model_filepath)
        ran = list(operators(written.read_bytes()))
    assert copies == {}  # there is nothing to copy on a CPU
    assert {"TopK", "GatherElements"} <= set(ran)
    assert len(ran) <= len(nodes_by_provider(session)[CPU])


def test_copies_that_onnx_runtime_put_into_the_graph_are_counted_by_their_way(
    tmp_path: Path,
) -> None:
    written = with_copies(tiny_artifact(tmp_path / "tiny.onnx")).SerializeToString()
    options = session_options(1)
    with copies_counted(options) as copies:
        Path(options.optimized_model_filepath).write_bytes(written)  # as a GPU's provider would
    assert copies == {TO_CPU: 1, TO_GPU: 2}
