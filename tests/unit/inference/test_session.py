import logging
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from server.errors import ArtifactInvalid, InferenceFailed, ProviderUnavailable, SettingsInvalid
from server.inference.artifact import Artifact, load_artifact
from server.inference.cuda.placement import Node, Placement
from server.inference.devices import (
    cpu_fallback,
    devices_to_try,
    driver_found,
    gpu_visible,
    open_on_first,
)
from server.inference.onnx_session import cpu_options
from server.inference.session import Session
from tests.support.artifacts import POISON, tiny_artifact, tiny_candidates

CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
without_cuda = pytest.mark.skipif(CUDA, reason="this onnxruntime has CUDA; see tests/gpu")


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return load_artifact(tiny_artifact(tmp_path / "tiny.onnx", max_candidates=5))


@pytest.fixture
def session(artifact: Artifact) -> Session:
    return Session.open(artifact, device="cpu", threads=1)


def noise(batch: int, height: int, width: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    random = np.random.default_rng(batch)
    return random.integers(0, 256, (batch, height, width, 3), np.uint8)


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
@pytest.mark.parametrize("hw", [(64, 64), (32, 64), (64, 96)])
def test_images_become_candidates(session: Session, batch: int, hw: tuple[int, int]) -> None:
    images = noise(batch, *hw)
    candidates = session.run(images)
    assert candidates.dtype == np.float32
    np.testing.assert_allclose(candidates, tiny_candidates(images, 5), atol=1e-6)


def test_what_really_runs_is_said(session: Session) -> None:
    assert (session.provider, session.device) == ("CPUExecutionProvider", "cpu")
    assert set(session.nodes_by_provider) == {"CPUExecutionProvider"}
    nodes = session.nodes["CPUExecutionProvider"]
    assert session.nodes_by_provider == {"CPUExecutionProvider": len(nodes)}
    assert {"TopK", "GatherElements"} <= {node.operator for node in nodes}


def test_the_default_number_of_threads_works(artifact: Artifact) -> None:
    session = Session.open(artifact, device="cpu")
    session.warm_up([1, 4])
    assert session.run(noise(1, 64, 64)).shape == (1, 4, 6)


def test_a_batch_that_onnx_runtime_refuses_has_failed_and_the_next_one_has_not(
    session: Session,
) -> None:
    images = noise(3, 64, 64)
    poisoned = images.copy()
    poisoned[1, 0, 0] = POISON
    with pytest.raises(InferenceFailed, match="batch of 3 failed on CPU") as caught:
        session.run(poisoned)
    assert caught.value.__cause__ is not None
    np.testing.assert_allclose(session.run(images), tiny_candidates(images, 5), atol=1e-6)


def test_a_closed_session_does_not_run(session: Session) -> None:
    session.close()
    with pytest.raises(AssertionError, match="closed"):
        session.run(noise(1, 64, 64))


class Shapes:
    """Notes the shapes of its calls."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.seen.append(images.shape[:3])
        return np.zeros((len(images), 5, 6), np.float32)


@pytest.mark.parametrize(
    ("device", "sizes", "warmed", "times"),
    [("cuda:0", (1, 2, 4, 6), (6, 4, 2, 1), 2), ("cpu", (), (1,), 1)],
)
def test_the_warm_up_runs_every_shape_that_will_come(
    artifact: Artifact,
    device: str,
    sizes: tuple[int, ...],
    warmed: tuple[int, ...],
    times: int,
) -> None:
    runs = Shapes()
    placement = Placement({"P": (Node("layer", "Conv"),)}, {})
    session = Session(artifact, runs, device, "P", placement, sizes)
    assert session.nodes_by_provider == {"P": 1}
    session.warm_up(range(1, 7))
    shapes = [(size, *hw) for size in warmed for hw in artifact.metadata.buckets]
    assert runs.seen == shapes * times
    assert session.captured == {}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("spinning", [False, True])
def test_calls_side_by_side_have_their_own_answers(
    artifact: Artifact, threads: int, spinning: bool
) -> None:
    session = Session.open(artifact, device="cpu", threads=threads, spinning=spinning)
    batches = [noise(batch, 64, 64) for batch in (1, 2, 3, 1)] * 10
    with ThreadPoolExecutor(4) as callers:
        for images, candidates in zip(batches, callers.map(session.run, batches), strict=True):
            np.testing.assert_allclose(candidates, tiny_candidates(images, 5), atol=1e-6)


@pytest.mark.parametrize(
    ("setting", "devices"),
    [
        ("auto", ("cuda:0", "cpu")),
        ("cpu", ("cpu",)),
        ("cuda", ("cuda:0",)),
        ("cuda:3", ("cuda:3",)),
        ("tensorrt", ("tensorrt",)),
    ],
)
def test_a_setting_stands_for_devices_in_order(setting: str, devices: tuple[str, ...]) -> None:
    assert devices_to_try(setting) == devices


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "CPU", "", "tensorrt:1"])
def test_an_unknown_device_is_refused(artifact: Artifact, device: str) -> None:
    with pytest.raises(SettingsInvalid, match="it must be auto, cpu, cuda, cuda:N or tensorrt"):
        Session.open(artifact, device=device)


def test_a_session_is_on_one_device(artifact: Artifact) -> None:
    with pytest.raises(SettingsInvalid, match="stands for several"):
        Session.open(artifact, device="auto")


@without_cuda
@pytest.mark.parametrize("device", ["cuda", "cuda:1", "tensorrt"])
def test_a_gpu_that_cannot_be_used_is_an_error_that_says_what_to_install(
    artifact: Artifact, device: str
) -> None:
    with pytest.raises(ProviderUnavailable, match=r"make serve EXTRA=gpu.*'yolov8-fla\[gpu\]'"):
        Session.open(artifact, device=device)


@without_cuda
@pytest.mark.parametrize("visible", [False, True])
def test_auto_takes_the_cpu_and_says_so(
    artifact: Artifact, caplog: pytest.LogCaptureFixture, visible: bool
) -> None:
    with caplog.at_level(logging.INFO, logger="server.inference.devices"):
        session, reason = open_on_first(
            "auto", lambda device: Session.open(artifact, device=device), visible=lambda: visible
        )
    assert session.device == "cpu"
    (record,) = caplog.records
    assert record.levelno == (logging.WARNING if visible else logging.INFO)
    assert "runs on the CPU" in record.getMessage()
    if visible:
        assert reason is not None
        assert "the CPU build" in reason
        assert "yolov8-fla[gpu]" in reason
        assert reason in record.getMessage()
    else:
        assert reason is None


def test_auto_takes_the_gpu_where_it_works() -> None:
    assert open_on_first("auto", lambda device: device) == ("cuda:0", None)


def test_a_cpu_that_was_asked_for_is_no_fallback() -> None:
    assert open_on_first("cpu", lambda device: device, visible=lambda: True) == ("cpu", None)


@pytest.mark.parametrize(
    ("built", "visible", "reason"),
    [
        (True, True, "it needs a driver"),
        (True, False, r"no NVIDIA GPU is visible .* --gpus all"),
        (False, True, r"a GPU is visible, but this is the CPU build .*yolov8-fla\[gpu\]"),
    ],
)
def test_a_fallback_to_the_cpu_has_its_reason(built: bool, visible: bool, reason: str) -> None:
    said = cpu_fallback("it needs a driver", built=built, visible=visible)
    assert said is not None
    assert re.search(reason, said)


def test_a_cpu_build_without_a_gpu_expects_none() -> None:
    assert cpu_fallback("built without CUDA", built=False, visible=False) is None


def test_a_device_that_was_asked_for_is_not_replaced() -> None:
    def refuse(device: str) -> str:
        raise ProviderUnavailable(device)

    with pytest.raises(ProviderUnavailable, match="cuda:1"):
        open_on_first("cuda:1", refuse)


def test_another_error_than_a_missing_provider_is_not_hidden_by_auto() -> None:
    tried = []

    def refuse(device: str) -> str:
        tried.append(device)
        raise ArtifactInvalid(device)

    with pytest.raises(ArtifactInvalid, match="cuda:0"):
        open_on_first("auto", refuse)
    assert tried == ["cuda:0"]


@pytest.mark.parametrize(
    ("names", "visible"),
    [(["null", "nvidiactl"], False), (["nvidia0"], True), (["dxg"], True), ([], False)],
)
def test_a_gpu_is_visible_by_its_device_file(
    tmp_path: Path, names: list[str], visible: bool
) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert gpu_visible(tmp_path) is visible


def test_a_model_that_onnx_runtime_cannot_load_is_an_invalid_artifact(artifact: Artifact) -> None:
    model = onnx.load(artifact.path)
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, artifact.path)
    with pytest.raises(ArtifactInvalid, match="ONNX Runtime cannot load it"):
        Session.open(artifact, device="cpu")


def test_a_model_of_another_signature_is_an_invalid_artifact(artifact: Artifact) -> None:
    model = onnx.load(artifact.path)
    model.graph.output[0].name = "middle"
    model.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(model, artifact.path)
    with pytest.raises(ArtifactInvalid, match="an artifact maps images"):
        Session.open(artifact, device="cpu")


SPINNING = "session.intra_op.allow_spinning"
SLOW_EXACT = "session.x64quantprecision"


@pytest.mark.parametrize(("spinning", "shown"), [(False, "0"), (True, "1")])
def test_threads_spin_only_where_that_is_asked_for(
    spinning: bool, shown: str, capfd: pytest.CaptureFixture[str]
) -> None:
    options = cpu_options("fp32", 2, spinning=spinning)
    assert options.get_session_config_entry(SPINNING) == shown
    assert capfd.readouterr().err == ""  # ONNX Runtime warns there of what is set twice


@pytest.mark.parametrize(
    ("precision", "exact_integers", "slow"),
    [("int8", False, True), ("int8", True, False), ("fp32", False, False)],
)
def test_int8_is_exact_on_a_cpu_whose_fast_instructions_saturate(
    precision: str, exact_integers: bool, slow: bool
) -> None:
    options = cpu_options(precision, 1, exact_integers=exact_integers)
    try:
        assert (options.get_session_config_entry(SLOW_EXACT) == "1") is slow
    except RuntimeError:  # which says that it is not set
        assert not slow


def test_a_driver_is_found_where_its_library_can_be_loaded(tmp_path: Path) -> None:
    assert driver_found("libc.so.6")
    assert not driver_found(str(tmp_path / "libcuda.so.1"))
