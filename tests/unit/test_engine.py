"""How a model is laid out over CPUs, and what an engine does with sessions that fail."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from server.artifact import Artifact, load_artifact
from server.engine import Engine, SideBySide
from server.errors import ArtifactInvalid, InferenceFailed, SessionLost
from tests.artifacts import tiny_artifact, tiny_candidates

LIMIT_S = 20
GREY = np.full((1, 64, 64, 3), 114, np.uint8)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return load_artifact(tiny_artifact(tmp_path_factory.mktemp("engine") / "tiny.onnx"))


class Stub:
    """A session that remembers its calls; fails where it is told to."""

    provider = "CPUExecutionProvider"
    device = "cpu"

    def __init__(self, *, fails: bool = False, fails_warm: bool = False) -> None:
        self.fails = fails
        self.fails_warm = fails_warm
        self.warmed: list[list[int]] = []
        self.runs = 0

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.runs += 1
        if self.fails:
            raise InferenceFailed("a batch failed") from RuntimeError("the driver")
        return np.zeros((len(images), 5, 6), np.float32)

    def warm_up(self, batch_sizes: Sequence[int]) -> None:
        self.warmed.append(list(batch_sizes))
        if self.fails_warm:
            raise InferenceFailed("a warm-up failed") from RuntimeError("no memory")


class Meeting(Stub):
    """A session in which a call waits until those of all others have begun."""

    def __init__(self, all_run: threading.Barrier) -> None:
        super().__init__()
        self._all_run = all_run
        self._busy = threading.Lock()

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        assert self._busy.acquire(blocking=False), "two calls in one session"
        try:
            self._all_run.wait(LIMIT_S)
            return super().run(images)
        finally:
            self._busy.release()


@pytest.mark.parametrize(
    ("cpus", "threads", "lanes"),
    [(1, None, 1), (2, None, 2), (8, None, 8), (8, 1, 8), (8, 4, 2), (8, 3, 2), (2, 4, 1)],
)
def test_calls_side_by_side_share_out_the_cpus(
    artifact: Artifact, cpus: int, threads: int | None, lanes: int
) -> None:
    engine = Engine.open([artifact], device="cpu", intra_op_threads=threads, cpus=cpus)
    assert (engine.lanes, engine.max_batch_size) == (lanes, 1)
    assert isinstance(engine._session, SideBySide) == (lanes > 1 and (threads or 1) > 1)
    alone_has_its_own = engine._lone_session is not engine._session
    assert alone_has_its_own == (threads is None and cpus > 1)
    engine.warm_up()
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    for alone in (False, True):
        candidates = engine.run(images, alone=alone)
        expected = tiny_candidates(images, candidates.shape[1])
        np.testing.assert_allclose(candidates, expected, atol=1e-6)


def test_calls_at_the_same_time_have_a_session_each() -> None:
    all_run = threading.Barrier(3)
    sessions = [Meeting(all_run) for _ in range(3)]
    side_by_side = SideBySide(sessions)
    with ThreadPoolExecutor(3) as callers:
        answers = list(callers.map(side_by_side.run, [GREY] * 6))
    assert [answer.shape for answer in answers] == [(1, 5, 6)] * 6
    assert [session.runs for session in sessions] == [2, 2, 2]


def test_a_session_whose_call_failed_is_used_again() -> None:
    side_by_side = SideBySide([Stub(fails=True)])
    for _ in range(2):
        with pytest.raises(InferenceFailed):
            side_by_side.run(GREY)


def test_every_session_is_warmed_up_with_every_size(artifact: Artifact) -> None:
    lone, sessions = Stub(), [Stub(), Stub()]
    Engine(
        artifact, "a test's", SideBySide(sessions), lone_session=lone, max_batch_size=3
    ).warm_up()
    assert [each.warmed for each in (lone, *sessions)] == [[[1, 2, 3]]] * 3


def test_a_model_that_cannot_warm_up_is_no_artifact(artifact: Artifact) -> None:
    with pytest.raises(ArtifactInvalid, match="warm-up failed: no memory"):
        Engine(artifact, "a test's", Stub(fails_warm=True)).warm_up()


@pytest.mark.parametrize("alone", [False, True])
def test_only_a_call_that_is_alone_runs_in_the_lone_session(
    artifact: Artifact, alone: bool
) -> None:
    session, lone = Stub(), Stub()
    Engine(artifact, "a test's", session, lone_session=lone).run(GREY, alone=alone)
    assert (session.runs, lone.runs) == (not alone, alone)


def test_a_failed_call_leaves_a_session_that_still_runs(artifact: Artifact) -> None:
    with pytest.raises(InferenceFailed):
        Engine(artifact, "a test's", Stub(fails=True)).run(GREY)


def test_a_session_that_runs_nothing_any_more_is_lost(artifact: Artifact) -> None:
    engine = Engine(artifact, "a test's", Stub(fails=True, fails_warm=True))
    with pytest.raises(SessionLost, match="the session on cpu is lost: the driver"):
        engine.run(GREY)
