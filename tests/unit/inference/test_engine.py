"""How a model is laid out over CPUs, and what an engine does with sessions that fail."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from server.errors import ArtifactInvalid, InferenceFailed, SessionLost
from server.inference.artifact import Artifact, load_artifact
from server.inference.engine import (
    SLOW_IN_A_ROW,
    WITH_FEWER,
    AdaptiveThreading,
    Engine,
    SessionPool,
)
from tests.support.artifacts import tiny_artifact, tiny_candidates

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
    ("cpus", "threads", "instances"),
    [(1, None, 1), (2, None, 2), (8, None, 8), (8, 1, 8), (8, 4, 2), (8, 3, 2), (2, 4, 1)],
)
def test_calls_side_by_side_share_out_the_cpus(
    artifact: Artifact, cpus: int, threads: int | None, instances: int
) -> None:
    engine = Engine.open([artifact], device="cpu", intra_op_threads=threads, cpus=cpus)
    assert (engine.instances, engine.max_batch_size) == (instances, 1)
    assert isinstance(engine._session, SessionPool) == (instances > 1 and (threads or 1) > 1)
    alone_has_its_own = engine._latency_session is not engine._session
    assert alone_has_its_own == (threads is None and cpus > 1)
    engine.warm_up()
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    for sole in (False, True):
        candidates = engine.run(images, sole=sole)
        expected = tiny_candidates(images, candidates.shape[1])
        np.testing.assert_allclose(candidates, expected, atol=1e-6)


def test_calls_at_the_same_time_have_a_session_each() -> None:
    all_run = threading.Barrier(3)
    sessions = [Meeting(all_run) for _ in range(3)]
    pool = SessionPool(sessions)
    with ThreadPoolExecutor(3) as callers:
        answers = list(callers.map(pool.run, [GREY] * 6))
    assert [answer.shape for answer in answers] == [(1, 5, 6)] * 6
    assert [session.runs for session in sessions] == [2, 2, 2]


def test_a_session_whose_call_failed_is_used_again() -> None:
    pool = SessionPool([Stub(fails=True)])
    for _ in range(2):
        with pytest.raises(InferenceFailed):
            pool.run(GREY)


def test_every_session_is_warmed_up_with_every_size(artifact: Artifact) -> None:
    lone, sessions = Stub(), [Stub(), Stub()]
    Engine(
        artifact, "a test's", SessionPool(sessions), latency_session=lone, max_batch_size=3
    ).warm_up()
    assert [each.warmed for each in sessions] == [[[1, 2, 3]]] * 2
    assert lone.runs == 1  # it is the same model: no shape is new to it but for its memory


def test_a_model_that_cannot_warm_up_is_no_artifact(artifact: Artifact) -> None:
    with pytest.raises(ArtifactInvalid, match="warm-up failed: no memory"):
        Engine(artifact, "a test's", Stub(fails_warm=True)).warm_up()


def test_a_model_that_cannot_run_alone_is_no_artifact(artifact: Artifact) -> None:
    with pytest.raises(ArtifactInvalid, match="warm-up failed: the driver"):
        Engine(artifact, "a test's", Stub(), latency_session=Stub(fails=True)).warm_up()


@pytest.mark.parametrize("sole", [False, True])
def test_only_a_call_that_is_alone_runs_in_the_lone_session(artifact: Artifact, sole: bool) -> None:
    session, lone = Stub(), Stub()
    Engine(artifact, "a test's", session, latency_session=lone).run(GREY, sole=sole)
    assert (session.runs, lone.runs) == (not sole, sole)


def lone_calls(all_paces: Sequence[float], fewer_pace: float) -> list[bool]:
    """Which of so many lone calls had all threads; their paces, and that with fewer."""
    calls, had_all = AdaptiveThreading(), []
    calls.note(1.7, all_threads=False)  # at the warm-up
    for pace in all_paces:
        had_all.append(calls.all_threads)
        calls.note(pace if had_all[-1] else fewer_pace, all_threads=had_all[-1])
    return had_all


def test_lone_calls_keep_all_threads_while_nothing_disturbs_them() -> None:
    assert all(lone_calls([1.0, 1.6, 1.2] * 50, fewer_pace=1.7))


def test_a_few_slow_calls_are_no_reason_to_take_fewer_threads() -> None:
    assert all(lone_calls(([1.0] + [9.0] * (SLOW_IN_A_ROW - 1)) * 50, fewer_pace=1.7))


def test_where_others_want_the_cpus_lone_calls_take_fewer_threads_and_try_again() -> None:
    had_all = lone_calls([1.0] * 5 + [8.0] * 200, fewer_pace=2.5)
    assert all(had_all[: 5 + SLOW_IN_A_ROW])
    after = had_all[5 + SLOW_IN_A_ROW :]
    assert after[: 2 * (WITH_FEWER + 1)] == ([False] * WITH_FEWER + [True]) * 2


def test_when_the_others_are_gone_lone_calls_have_all_threads_again() -> None:
    had_all = lone_calls([1.0] * 5 + [8.0] * 10 + [1.0] * 100, fewer_pace=2.5)
    assert not all(had_all)
    assert all(had_all[5 + SLOW_IN_A_ROW + WITH_FEWER :])


def test_where_fewer_threads_are_slower_still_lone_calls_keep_all() -> None:
    had_all = lone_calls([1.0] * 5 + [8.0] * 100, fewer_pace=9.0)
    assert had_all.count(False) == WITH_FEWER


def test_the_warm_up_tells_how_fast_fewer_threads_are(artifact: Artifact) -> None:
    session, lone = Stub(), Stub()
    engine = Engine(artifact, "a test's", session, latency_session=lone)
    engine.warm_up()
    assert engine._adaptive_threading._fewer_pace < 1
    assert session.runs == 3


def test_a_failed_call_leaves_a_session_that_still_runs(artifact: Artifact) -> None:
    with pytest.raises(InferenceFailed):
        Engine(artifact, "a test's", Stub(fails=True)).run(GREY)


def test_a_session_that_runs_nothing_any_more_is_lost(artifact: Artifact) -> None:
    engine = Engine(artifact, "a test's", Stub(fails=True, fails_warm=True))
    with pytest.raises(SessionLost, match="the session on cpu is lost: the driver"):
        engine.run(GREY)
