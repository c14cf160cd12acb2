"""Calls over fixed buffers, on the CPU: the same code as on a GPU, but for the memory's place."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from server.inference.artifact import Artifact, load_artifact
from server.inference.cuda.graphs import BoundRun, BoundRunner, Memory
from server.inference.cuda.model import fix_shape, input_dimensions
from server.inference.cuda.options import Shape, padded_sizes
from server.inference.devices import CPU
from server.inference.onnx_session import load, session_options
from server.inference.session import PlainRunner, padded
from server.vision.letterbox import PAD_VALUE
from tests.support.artifacts import BUCKETS, POISON, tiny_artifact, tiny_candidates

K = 3
SIZES = padded_sizes(6)  # 1, 2, 4, 6
ON_CPU = Memory("cpu")


class Opened(NamedTuple):
    session: Any
    graphs: bool = False


class Recorded:
    """A session on the CPU that notes the graph number of each call: None is the default one."""

    def __init__(self, session: Any, *, fails_to_capture: bool = False) -> None:
        self._session = session
        self._fails = fails_to_capture
        self.graph_ids: list[str | None] = []

    def io_binding(self) -> Any:
        return self._session.io_binding()

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        try:
            self.graph_ids.append(options.get_run_config_entry("gpu_graph_id"))
        except RuntimeError:  # it is not set
            self.graph_ids.append(None)
            if self._fails:
                raise RuntimeError("an operation is not permitted while capturing") from None
        self._session.run_with_iobinding(binding, options)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    path = tmp_path_factory.mktemp("runs") / "tiny.onnx"
    return load_artifact(tiny_artifact(path, max_candidates=K))


@pytest.fixture(scope="module")
def session(artifact: Artifact) -> Any:
    return load(artifact, session_options(1), [(CPU, {})])


def one_for_all(session: Any) -> Callable[[Shape], Opened]:
    return lambda _: Opened(session)


def one_for_each(artifact: Artifact) -> Callable[[Shape], Opened]:
    def open_shape(shape: Shape) -> Opened:
        options = session_options(1)
        fix_shape(options, input_dimensions(artifact), shape)
        return Opened(load(artifact, options, [(CPU, {})]))

    return open_shape


def bound(artifact: Artifact, open_shape: Callable[[Shape], Any]) -> BoundRunner:
    def candidates(hw: tuple[int, int]) -> int:
        return min(K, artifact.metadata.anchors(hw))

    return BoundRunner(open_shape, candidates, ON_CPU, SIZES)


def noise(batch: int, hw: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng([batch, *hw, seed]).integers(0, 256, (batch, *hw, 3), np.uint8)


@pytest.mark.parametrize("fixed", [False, True])
def test_every_shape_has_the_answers_of_a_plain_call(
    artifact: Artifact, session: Any, fixed: bool
) -> None:
    runs = bound(artifact, one_for_each(artifact) if fixed else one_for_all(session))
    plain, padding = PlainRunner(session), PlainRunner(session, SIZES)
    for turn in range(2):  # the second one finds what the first left in the buffers
        for batch in range(1, 9):  # two more than there are sizes for
            for hw in BUCKETS:
                images = noise(batch, hw, turn)
                candidates = runs.run(images)
                assert candidates.dtype == np.float32
                np.testing.assert_array_equal(candidates, plain.run(images))
                np.testing.assert_array_equal(candidates, padding.run(images))
                np.testing.assert_allclose(candidates, tiny_candidates(images, K), atol=1e-6)
    assert {shape[0] for shape in runs.captured} == {1, 2, 4, 6, 7, 8}


def test_answers_stay_as_they_were_given(artifact: Artifact, session: Any) -> None:
    runs = bound(artifact, one_for_all(session))
    first = runs.run(noise(2, (64, 64), 1))
    kept = first.copy()
    runs.run(noise(2, (64, 64), 2))
    np.testing.assert_array_equal(first, kept)
    first[:] = 0  # it is the caller's


def test_what_fills_a_batch_up_is_grey() -> None:
    images = noise(3, (32, 64))
    whole = padded(images, SIZES)
    assert whole.shape == (4, 32, 64, 3)
    np.testing.assert_array_equal(whole[:3], images)
    assert (whole[3:] == PAD_VALUE).all()
    assert padded(whole, SIZES) is whole


def test_images_of_the_call_before_are_grey_again(session: Any) -> None:
    run = BoundRun(session, (4, 64, 64, 3), K, ON_CPU)
    for batch in (1, 4, 1, 3, 2, 4, 1):
        images = noise(batch, (64, 64))
        run(images)
        given = run._input.numpy()
        np.testing.assert_array_equal(given[:batch], images)
        assert (given[batch:] == PAD_VALUE).all()


def test_callers_at_the_same_time_wait_for_each_other(artifact: Artifact, session: Any) -> None:
    runs = bound(artifact, one_for_all(session))
    batches = [noise(batch, hw, i) for i in range(8) for batch in (1, 3) for hw in BUCKETS]
    with ThreadPoolExecutor(6) as callers:
        answers = list(callers.map(runs.run, batches))
    for images, candidates in zip(batches, answers, strict=True):
        np.testing.assert_allclose(candidates, tiny_candidates(images, K), atol=1e-6)


def test_whoever_calls_the_session_runs_on_one_thread(artifact: Artifact, session: Any) -> None:
    opened_on = []

    def open_shape(shape: Shape) -> Opened:
        opened_on.append(threading.current_thread())
        return Opened(session)

    runs = bound(artifact, open_shape)
    with ThreadPoolExecutor(3) as callers:
        list(callers.map(runs.run, [noise(1, hw) for hw in BUCKETS]))
    (thread,) = set(opened_on)
    assert thread is not threading.current_thread()
    del runs
    thread.join(10)
    assert not thread.is_alive()  # it went with the last reference


def test_a_batch_that_failed_leaves_the_buffers_in_order(artifact: Artifact, session: Any) -> None:
    runs = bound(artifact, one_for_all(session))
    images = noise(3, (64, 64))
    runs.run(images)
    poisoned = images.copy()
    poisoned[1, 0, 0] = POISON
    with pytest.raises(Exception, match="out of"):
        runs.run(poisoned)
    np.testing.assert_allclose(runs.run(images), tiny_candidates(images, K), atol=1e-6)


def test_a_shape_that_could_not_be_opened_is_tried_again(artifact: Artifact, session: Any) -> None:
    tries = []

    def open_shape(shape: Shape) -> Opened:
        tries.append(shape)
        if len(tries) == 1:
            raise MemoryError("the GPU is full")
        return Opened(session)

    runs = bound(artifact, open_shape)
    with pytest.raises(MemoryError, match="the GPU is full"):
        runs.run(noise(3, (64, 64)))
    for _ in range(3):
        runs.run(noise(3, (64, 64)))
    assert tries == [(4, 64, 64, 3)] * 2


def test_an_answer_of_another_shape_is_refused(session: Any) -> None:
    with pytest.raises(Exception, match="shape"):
        BoundRun(session, (1, 64, 64, 3), K + 1, ON_CPU)(noise(1, (64, 64)))


def test_a_graph_is_recorded_once_for_each_shape_and_replayed_from_then_on(
    artifact: Artifact, session: Any
) -> None:
    by_shape: dict[Shape, Recorded] = {}

    def open_shape(shape: Shape) -> Opened:
        by_shape[shape] = Recorded(session)
        return Opened(by_shape[shape], graphs=True)

    runs = bound(artifact, open_shape)
    for _ in range(3):
        for hw in BUCKETS:
            images = noise(3, hw)
            np.testing.assert_allclose(runs.run(images), tiny_candidates(images, K), atol=1e-6)
    assert runs.captured == {(4, *hw, 3): True for hw in BUCKETS}
    for recorded in by_shape.values():
        # Once to find algorithms and memory, once to record; then nothing without the graph.
        assert recorded.graph_ids == ["-1", None, None, None, None]


def test_a_graph_that_cannot_be_recorded_is_done_without_and_said(
    artifact: Artifact, session: Any, caplog: pytest.LogCaptureFixture
) -> None:
    recorded = Recorded(session, fails_to_capture=True)
    runs = bound(artifact, lambda _: Opened(recorded, graphs=True))
    images = noise(3, (32, 64))
    with caplog.at_level(logging.WARNING, logger="server.inference.cuda.graphs"):
        for _ in range(3):
            np.testing.assert_allclose(runs.run(images), tiny_candidates(images, K), atol=1e-6)
    assert runs.captured == {(4, 32, 64, 3): False}
    assert recorded.graph_ids == ["-1", None, "-1", "-1", "-1"]
    (record,) = caplog.records
    assert record.getMessage() == (
        "no CUDA graph of 4 images of 32x64 (height x width), which run without: "
        "an operation is not permitted while capturing"
    )


@pytest.mark.parametrize("graphs", [False, True])
def test_no_call_has_a_graph_unless_the_session_records_them(
    artifact: Artifact, session: Any, graphs: bool
) -> None:
    recorded = Recorded(session)
    runs = bound(artifact, lambda _: Opened(recorded, graphs=graphs))
    runs.run(noise(1, (64, 64)))
    assert (None in recorded.graph_ids) == graphs
