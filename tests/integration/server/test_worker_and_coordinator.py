"""A worker's model and the coordinator, at the two ends of one socket in one event loop."""

import asyncio
import gc
import math
import socket
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from server.errors import (
    DeadlineExceeded,
    InferenceFailed,
    NotReady,
    QueueFull,
    ReloadFailed,
    ServerError,
)
from server.http.auth import Keys
from server.inference.artifact import Artifact
from server.inference.engine import Engine
from server.observability.metrics import Metrics
from server.serving.interface import ImageReservation, QueueStatus
from server.serving.local_model import Loader, LocalModel
from server.serving.threads import ClientLeft
from server.settings import Settings
from server.workers.connection_passing import ConnectionDispatcher, _received, passing_sockets
from server.workers.coordinator import Coordinator
from server.workers.messages import Message, MetricsSnapshot, Release, Reserve, Submit
from server.workers.remote_model import RemoteModel
from server.workers.shared_memory import SharedFile, SlotLayout, SlotPool
from server.workers.worker_connection import UNRESPONSIVE_HEARTBEATS, WorkerConnection
from tests.support.artifacts import paint, tiny_artifact
from tests.support.metrics import fresh
from tests.support.serving import LIMIT_S, RED, HeldSession

pytestmark = pytest.mark.anyio
PIXELS = paint((64, 64), {(0, 1): RED})
STEPS = 40  # more than a request has awaits


def write(reservation: ImageReservation, pixels: NDArray[np.uint8]) -> None:
    height, width, _ = pixels.shape
    with reservation.canvas((height, width)) as canvas:
        canvas[:] = pixels


@dataclass
class Joined:
    """A coordinator and a worker.

    Attributes:
        coordinator: with the model.
        worker: the coordinator's end.
        model: the worker's.
        sessions: of the engines that were opened, the latest last.
        lost: what each end said when the other was gone.
        reports: whether the worker was said to take connections, each time that it changed.
    """

    coordinator: Coordinator
    worker: WorkerConnection
    model: RemoteModel
    sessions: list[HeldSession]
    lost: list[str] = field(default_factory=list)
    reports: list[bool] = field(default_factory=list)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not condition():  # noqa: ASYNC110  # the two ends have no event for it
                await asyncio.sleep(0.001)

    async def ask(self, images: int = 1, *, engine: Any = None) -> list[float]:
        """Infers the same image some times; gives the best score of each."""
        engine = engine or self.model.engine
        deadline = asyncio.get_running_loop().time() + LIMIT_S
        async with self.model.queue.reserve(engine, images) as reservations:
            for reservation in reservations:
                write(reservation, PIXELS)
            answers = await asyncio.gather(
                *(reservation.submit(deadline) for reservation in reservations)
            )
        return [float(answer.result[:, 4].max()) for answer in answers]


def value_of(both: Joined, name: str) -> float | None:
    return both.coordinator.metrics.registry.get_sample_value(name)


@asynccontextmanager
async def joined(
    artifact: Path, *, held: bool = False, ready: bool = True, **given: Any
) -> AsyncIterator[Joined]:
    chosen = {"model": artifact, "device": "cpu", "intra_op_threads": 1, "http_workers": 2}
    settings = Settings.model_validate(chosen | given)
    sessions: list[HeldSession] = []

    def open_engine(artifacts: Sequence[Artifact], settings: Settings) -> Engine:
        sessions.append(HeldSession(artifacts[0], settings))
        if not held:
            sessions[-1].gate.set()
        return Engine(artifacts[0], "a test's", sessions[-1], max_batch_size=4)

    metrics = Metrics()
    model = LocalModel(settings, Loader(settings, open_engine), metrics)
    coordinator = Coordinator(settings, model, metrics, Keys(()))
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    lost: list[str] = []
    reports: list[bool] = []
    worker = WorkerConnection(
        "http-1",
        coordinator,
        on_ready=lambda: reports.append(True),
        on_unresponsive=lambda: reports.append(False),
        kill=lambda: lost.append("the worker is killed"),
    )
    remote = RemoteModel(
        settings,
        model.name,
        control=theirs,
        rest=b"",
        shared=SharedFile(coordinator.slots.shared.file),
        metrics=fresh(),
        keys=Keys(()),
        lost=lambda: lost.append("the engine process is gone"),
    )
    loop = asyncio.get_running_loop()
    async with coordinator.running(), model.running(), remote.running():
        await loop.create_unix_connection(lambda: worker.channel, sock=ours)
        coordinator.connected(worker)
        if ready:
            remote.send_ready()
        both = Joined(coordinator, worker, remote, sessions, lost, reports)
        await both.until(lambda: remote.state == "ready" and worker.ready == ready)
        try:
            yield both
        finally:
            worker.channel.close()
            await both.until(lambda: len(lost) >= 2)
    coordinator.slots.close()


async def test_an_image_goes_there_and_its_candidates_come_back(artifact: Path) -> None:
    async with joined(artifact) as both:
        assert await both.ask(3) == [1.0, 1.0, 1.0]
        await both.until(lambda: both.coordinator.slots.taken == 0)
        assert both.model.queue.status().queue_images == 0


async def test_a_request_cut_off_at_any_await_leaves_nothing_behind(artifact: Path) -> None:
    async with joined(artifact) as both:
        for steps in range(STEPS):
            cut_off = asyncio.create_task(both.ask(3))
            beside = asyncio.create_task(both.ask())
            for _ in range(steps):
                await asyncio.sleep(0)
            cut_off.cancel()
            await asyncio.wait([cut_off])
            assert await beside == [1.0]
        await both.until(lambda: both.coordinator.slots.taken == 0)
        batcher = both.coordinator.model.queue.batcher
        await both.until(lambda: batcher.running_batches == 0)
        assert (
            batcher.queue_images
            == batcher._waiting.weight
            == both.coordinator.model.queue.status().active_inferences
            == 0
        )
        assert not both.worker._images
        assert not both.model.queue._waiting
        assert not both.model.queue._pending
        assert await both.ask(4) == [1.0] * 4


async def test_what_a_thread_writes_after_its_request_was_cut_off_reaches_nobody(
    artifact: Path,
) -> None:
    async with joined(artifact, held=True) as both:
        queue = both.model.queue
        assert both.model.engine is not None
        async with queue.reserve(both.model.engine, 1) as (late,):
            pass
        await both.until(lambda: both.coordinator.slots.taken == 0)
        async with queue.reserve(both.model.engine, 1) as (reservation,):
            write(reservation, PIXELS)  # the same slot: it came back last
            with pytest.raises(ClientLeft):
                write(late, np.zeros_like(PIXELS))
            infers = asyncio.create_task(reservation.submit(float("inf")))
            await both.until(lambda: len(both.sessions[0].batch_sizes) == 1)
            both.sessions[0].gate.set()
            assert (await infers).result[:, 4].max() == 1.0


async def test_a_slot_that_a_thread_still_writes_into_is_not_reused(artifact: Path) -> None:
    async with joined(artifact) as both:
        assert both.model.engine is not None
        with ExitStack() as writing:
            async with both.model.queue.reserve(both.model.engine, 1) as (reservation,):
                writing.enter_context(reservation.canvas((64, 64)))
            for _ in range(STEPS):
                await asyncio.sleep(0)
            assert both.coordinator.slots.taken == 1
        await both.until(lambda: both.coordinator.slots.taken == 0)


async def test_a_full_queue_and_a_late_image_are_told_as_by_the_queue_itself(
    artifact: Path,
) -> None:
    limits: dict[str, Any] = {"max_queue_images": 2, "max_images_per_request": 2}
    async with joined(artifact, held=True, **limits) as both:
        runs = asyncio.create_task(both.ask())
        await both.until(lambda: both.sessions[0].batch_sizes == [1])
        engine = both.model.engine
        assert engine is not None
        async with both.model.queue.reserve(engine, 2) as (late, _):
            await both.until(lambda: both.model.queue.status().queue_images == 2)
            with pytest.raises(QueueFull, match="max_queue_images is 2"):
                both.model.queue.status().refuse_when_full(2)
            with pytest.raises(QueueFull, match="2 images already wait and 1 more came"):
                await both.ask()
            write(late, PIXELS)
            waits = asyncio.create_task(late.submit(0.0))
            both.sessions[0].gate.set()
            with pytest.raises(DeadlineExceeded):
                await waits
        assert await runs == [1.0]


async def test_a_replaced_model_stays_for_the_requests_that_began_with_it(tmp_path: Path) -> None:
    model = tiny_artifact(tmp_path / "model.onnx", name="before")
    async with joined(model) as both:
        begun_with = both.model.engine
        assert begun_with is not None
        old = weakref.ref(both.coordinator.engine(1))
        tiny_artifact(tmp_path / "next.onnx", name="after").rename(model)
        await both.model.reload()
        assert both.model.name == "after"
        assert await both.ask(engine=begun_with) == [1.0]
        assert both.sessions[0].batch_sizes == [1]
        assert await both.ask() == [1.0]
        assert both.sessions[1].batch_sizes == [1]
        del begun_with
        both.sessions.clear()
        gc.collect()
        await both.until(lambda: gc.collect() is not None and old() is None)
        with pytest.raises(KeyError):
            both.coordinator.engine(1)


async def test_a_model_that_shared_memory_has_no_room_for_fails_the_reload(
    tmp_path: Path,
) -> None:
    def full(layout: SlotLayout, count: int) -> None:
        raise OSError(12, "Cannot allocate memory")

    model = tiny_artifact(tmp_path / "model.onnx", name="before")
    async with joined(model) as both:
        fit = both.coordinator.slots.fit
        both.coordinator.slots.fit = full  # type: ignore[method-assign]
        tiny_artifact(tmp_path / "next.onnx", name="after").rename(model)
        with pytest.raises(ReloadFailed, match="Cannot allocate memory; the model of before goes"):
            await both.model.reload()
        reloads = both.coordinator.metrics.registry.get_sample_value
        assert reloads("detector_reloads_total", {"outcome": "failed"}) == 1
        assert reloads("detector_reloads_total", {"outcome": "ok"}) == 0
        assert both.model.name == "before"
        both.coordinator.slots.fit = fit  # type: ignore[method-assign]
        assert await both.ask() == [1.0]
        await both.model.reload()
        assert both.model.name == "after"


async def test_a_worker_that_is_gone_leaves_no_model_no_slot_and_no_place(artifact: Path) -> None:
    async with joined(artifact, held=True) as both:
        asking = asyncio.create_task(both.ask(3))
        await both.until(lambda: sum(both.sessions[0].batch_sizes) == 3)
        waiting = asyncio.create_task(both.ask(2))
        await both.until(lambda: both.coordinator.slots.taken == 5)
        both.worker.channel.close()
        await both.until(lambda: both.coordinator.slots.taken == 3)  # the call reads them
        assert both.coordinator.model.queue.status().queue_images == 0
        both.sessions[0].gate.set()
        await both.until(lambda: both.coordinator.slots.taken == 0)
        assert both.lost == ["the worker is killed", "the engine process is gone"]
        for each in (asking, waiting):
            each.cancel()


async def test_an_image_that_is_released_before_its_turn_began_frees_its_place(
    artifact: Path,
) -> None:
    async with joined(artifact) as both:
        queue = both.model.queue
        assert both.model.engine is not None
        async with queue.reserve(both.model.engine, 1) as (reservation,):
            write(reservation, PIXELS)
            submitted = asyncio.create_task(reservation.submit(float("inf")))
            await asyncio.sleep(0)  # both messages come in one read
        await both.until(lambda: both.coordinator.slots.taken == 0)
        assert both.coordinator.model.queue.status().queue_images == 0
        submitted.cancel()
        assert await both.ask() == [1.0]


async def test_a_worker_that_does_not_answer_gets_no_connections_until_it_does(
    artifact: Path,
) -> None:
    async with joined(artifact) as both:
        worker = both.worker
        assert both.reports == [True]
        for _ in range(UNRESPONSIVE_HEARTBEATS - 1):
            worker.heartbeat(worker.acked + 1)
        assert not worker.unresponsive
        worker.heartbeat(worker.acked + 1)
        assert worker.unresponsive
        assert both.reports == [True, False]
        assert value_of(both, "detector_http_workers") == 0
        worker.heartbeat(worker.acked)
        assert both.reports == [True, False, True]
        assert value_of(both, "detector_http_workers") == 1


async def test_a_worker_that_starts_slowly_is_counted_and_gets_connections_once(
    artifact: Path,
) -> None:
    async with joined(artifact, ready=False) as both:
        worker = both.worker
        for _ in range(UNRESPONSIVE_HEARTBEATS):
            worker.heartbeat(worker.acked + 1)
        both.model.send_ready()
        await both.until(lambda: worker.ready)
        assert value_of(both, "detector_http_workers") == 1
        worker.heartbeat(worker.acked)
        assert both.reports == [True]


async def test_a_worker_that_is_ended_gets_no_connections_whatever_it_says_then(
    artifact: Path,
) -> None:
    async with joined(artifact) as both:
        worker = both.worker
        for _ in range(UNRESPONSIVE_HEARTBEATS):
            worker.heartbeat(worker.acked + 1)
        worker.end()
        worker.heartbeat(worker.acked)  # before the channel's end is seen
        assert both.reports[-1] is False
        assert not worker.ready


def connections_of(intakes: Sequence[socket.socket]) -> list[int]:
    """How many connections wait at the workers' ends; they are taken."""
    counts = []
    for receiver in intakes:
        taken = list(iter(lambda: _received(receiver), None))  # noqa: B023  # used up at once
        counts.append(len(taken))
        for each in taken:
            each.close()
    return counts


async def test_a_worker_that_is_added_twice_has_one_share_and_none_once_it_is_removed() -> None:
    (ours, theirs), (other_ours, other_theirs) = passing_sockets(), passing_sockets()
    with ExitStack() as stack:
        for each in (ours, theirs, other_ours, other_theirs):
            stack.enter_context(each)
        listener = socket.create_server(("127.0.0.1", 0))
        address = listener.getsockname()
        dispatcher = ConnectionDispatcher(listener)
        stack.callback(dispatcher.close)
        for receiver in (ours, other_ours, ours):
            dispatcher.add(receiver)

        async def hand_out(connections: int) -> list[int]:
            counts = [0, 0]
            for _ in range(connections):
                stack.enter_context(socket.create_connection(address, LIMIT_S))
            async with asyncio.timeout(LIMIT_S):
                while sum(counts) < connections:
                    await asyncio.sleep(0)
                    came = connections_of([theirs, other_theirs])
                    counts = [had + new for had, new in zip(counts, came, strict=True)]
            return counts

        assert await hand_out(6) == [3, 3]
        dispatcher.remove(ours)
        assert await hand_out(6) == [0, 6]


async def test_what_a_worker_counts_is_asked_for_without_a_scrape(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.workers.coordinator.HEARTBEAT_S", 0.001)
    async with joined(artifact) as both:
        await both.until(lambda: bool(both.worker.last_snapshot))


async def test_metrics_that_cannot_be_had_are_an_error_and_no_endless_wait(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> None:
        raise RuntimeError("planted")

    async with joined(artifact) as both:
        both.coordinator.metrics.http_workers.set_function(lambda: broken(None))  # type: ignore[arg-type,return-value]
        async with asyncio.timeout(LIMIT_S):
            with pytest.raises(ServerError, match="the log says why"):
                await both.model.collect_metrics()


async def test_a_reload_ends_when_the_engine_process_has_been_silent_for_long(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.workers.remote_model.LOOK_S", 0.01)
    slots = SlotPool()
    ours, theirs = socket.socketpair()  # nobody reads at the other end
    theirs.setblocking(False)
    remote = RemoteModel(
        Settings.model_validate({"model": artifact, "inference_watchdog_s": 5}),
        "n",
        control=theirs,
        rest=b"",
        shared=SharedFile(slots.shared.file),
        metrics=fresh(),
        keys=Keys(()),
        lost=lambda: None,
    )
    remote.state = "ready"
    slots.shared.status.write(QueueStatus(0, 1, 1, 0, math.inf, time.monotonic() - 20))
    with ours:
        async with remote.running(), asyncio.timeout(LIMIT_S):
            with pytest.raises(NotReady, match="engine process has been silent for 20 s"):
                await remote.reload()
    slots.close()


async def test_metrics_that_come_too_late_are_told_and_do_no_harm(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, asked = threading.Event(), threading.Event()

    def hangs() -> int:
        asked.set()
        return int(gate.wait(LIMIT_S))

    async with joined(artifact) as both:
        both.coordinator.metrics.http_workers.set_function(hangs)
        monkeypatch.setattr("server.workers.remote_model.METRICS_TIMEOUT_S", 0.01)
        with pytest.raises(NotReady, match=r"has not answered for 0\.01 s"):
            await both.model.collect_metrics()
        assert not both.model._pending
        monkeypatch.undo()
        await both.until(asked.is_set)
        gate.set()
        assert b"detector_http_workers 1.0" in (await both.model.collect_metrics())()
        assert await both.ask() == [1.0]  # also after the late answer


async def test_an_image_that_meets_a_fault_of_our_own_is_answered(artifact: Path) -> None:
    def broken(_: object) -> None:
        raise RuntimeError("planted")

    async with joined(artifact) as both:
        both.coordinator.model.queue.batcher._bucket = broken
        async with asyncio.timeout(LIMIT_S):
            with pytest.raises(InferenceFailed, match="see its log"):
                await both.ask()


async def test_where_no_slot_is_free_a_request_is_refused_and_holds_no_place(
    artifact: Path,
) -> None:
    async with joined(artifact) as both:
        slots = both.coordinator.slots
        # As workers would hold them that don't copy what was found.
        leases = slots.take(slots.count)
        with pytest.raises(QueueFull, match="still being answered and 1 more came"):
            await both.ask()
        assert both.coordinator.model.queue.status().queue_images == 0
        for lease in leases:
            lease.release()
        assert await both.ask() == [1.0]


@pytest.mark.parametrize(
    "message",
    [
        Submit(4096, 64, 64, 1.0),
        Release([4096]),
        Reserve(0, 7, 1),
        Reserve(0, 1, 0),
        MetricsSnapshot(0, [("x" * 17 * 2**20, "counter", "", [])]),
    ],
    ids=lambda message: type(message).__name__,
)
async def test_the_channel_to_a_worker_that_breaks_the_rules_is_cut(
    artifact: Path, message: Message
) -> None:
    async with joined(artifact) as both:
        both.model._channel.send(message)
        await both.until(lambda: "the worker is killed" in both.lost)
        assert both.coordinator.slots.taken == 0
