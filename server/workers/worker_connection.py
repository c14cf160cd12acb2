"""The engine process' end of one worker's channel: its requests, and the slots it holds."""

import asyncio
import math
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

from server.errors import InferenceFailed, QueueFull, ServerError
from server.inference.engine import Engine
from server.observability.logs import get_logger
from server.observability.metrics_merge import Snapshot
from server.serving.batcher import Reservation
from server.serving.interface import Candidates
from server.serving.local_model import LocalModel
from server.serving.model_runner import Canvas
from server.workers.messages import (
    Ack,
    BadMessage,
    Channel,
    Failed,
    Inferred,
    Message,
    MetricsRequest,
    MetricsSnapshot,
    ModelReleased,
    Ready,
    Release,
    Reload,
    Reloaded,
    Reserve,
    SlotsGranted,
    SlotsRefused,
    StartupFailed,
    Submit,
)
from server.workers.shared_memory import Lease, SlotPool

UNRESPONSIVE_HEARTBEATS = 3  # without an answer, after which a worker gets no connections

logger = get_logger(__name__)


class ConnectionOwner(Protocol):
    """What a connection needs of the `Coordinator`, which imports this module."""

    model: LocalModel
    slots: SlotPool
    ending: asyncio.Event

    def engine(self, generation: int) -> Engine:
        """A model that some worker still has; `KeyError` where none has."""

    def publish_soon(self) -> None:
        """Something has changed that all workers see."""

    def acknowledged(self, worker: "WorkerConnection", number: int) -> None:
        """A worker has acknowledged a state update or a ping."""

    def model_released(self, worker: "WorkerConnection", generation: int) -> None:
        """A worker has no request with a model any more."""

    def lost(self, worker: "WorkerConnection") -> None:
        """A worker is gone, with its requests."""

    def on_snapshot(self, worker: "WorkerConnection") -> None:
        """A worker has answered `SnapshotRequest`, or will not."""

    async def send_metrics(self, worker: "WorkerConnection", request: int) -> None:
        """Answers a worker with the metrics of all."""

    async def reload(self) -> None:
        """Serves the model and the keys as they are now, in all workers."""


@dataclass(eq=False, slots=True)
class _Image:
    """One image of a worker's request.

    Attributes:
        reservation: what its request has reserved in the queue.
        engine: that its request began with.
        lease: its slot.
        submitting: what waits for its turn, once it is submitted.
        submitted: whether that has begun.
    """

    reservation: Reservation[Canvas, Candidates]
    engine: Engine
    lease: Lease
    submitting: asyncio.Task[None] | None = None
    submitted: bool = False


class WorkerConnection:
    """The connection to one HTTP worker.

    Args:
        name: such as "http-1".
        coordinator: gets its requests.
        on_ready: called when it is ready for connections, also again.
        on_unresponsive: called when it misses heartbeats, so that others get its connections; and
            when it is gone.
        kill: ends the process.

    Attributes:
        channel: the messages to and from it.
        ready: it takes connections.
        startup_failure: why it can't start as the server was deployed.
        acked: the number of the last `StateUpdate` or `Ping` that it acknowledged.
        missed_heartbeats: that it has not acknowledged, in a row.
        last_snapshot: its metrics, as it sent them last.
        snapshot_received: set when they have come.
    """

    def __init__(
        self,
        name: str,
        coordinator: ConnectionOwner,
        *,
        on_ready: Callable[[], None],
        on_unresponsive: Callable[[], None],
        kill: Callable[[], None],
    ) -> None:
        self.name = name
        self.channel = Channel(self._handle, lost=self._lost, handled=coordinator.publish_soon)
        self.send = self.channel.send
        self.ready = False
        self.startup_failure: str | None = None
        self.acked = 0
        self.missed_heartbeats = 0
        self.last_snapshot: Snapshot = []
        self.snapshot_received = asyncio.Event()
        self._coordinator = coordinator
        self._on_ready = on_ready
        self._on_unresponsive = on_unresponsive
        self._kill = kill
        self._images: dict[int, _Image] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def unresponsive(self) -> bool:
        """Whether it has missed `UNRESPONSIVE_HEARTBEATS` heartbeats in a row."""
        return self.missed_heartbeats >= UNRESPONSIVE_HEARTBEATS

    def heartbeat(self, number: int) -> None:
        """Counts a heartbeat as missed unless the worker has acknowledged `number`, the last one.

        Counted in heartbeats: when the machine slept, nobody was silent.
        """
        unresponsive = self.unresponsive
        self.missed_heartbeats = self.missed_heartbeats + 1 if self.acked < number else 0
        if self.ready and self.unresponsive != unresponsive:
            (self._on_unresponsive if self.unresponsive else self._on_ready)()

    def end(self) -> None:
        """Ends the worker at once; it gets no more connections, whatever it said before."""
        self.ready = False
        self._on_unresponsive()
        self.channel.close()
        self._kill()

    def _handle(self, message: Message) -> None:
        match message:
            case Submit():
                self._submit(message)
            case Release():
                for slot in message.slots:
                    self._release(slot)
            case Reserve():
                self._reserve(message)
            case Ack():
                self._coordinator.acknowledged(self, message.number)
            case MetricsSnapshot():
                self.last_snapshot = message.snapshot
                self._coordinator.on_snapshot(self)
            case MetricsRequest():
                self._start(self._coordinator.send_metrics(self, message.request))
            case Reload():
                self._start(self._reload(message.request))
            case ModelReleased():
                self._coordinator.model_released(self, message.generation)
            case Ready():
                self.ready = True
                self.missed_heartbeats = 0  # it starts slowly, and this is its sign of life
                self._on_ready()
            case StartupFailed():
                self.startup_failure = message.reason
            case _:
                raise BadMessage(f"{type(message).__name__} from a worker")

    def _reserve(self, request: Reserve) -> None:
        coordinator = self._coordinator
        try:
            engine = coordinator.engine(request.generation)
        except KeyError:
            raise BadMessage(f"no model of generation {request.generation}") from None
        if request.images < 1:
            raise BadMessage(f"{request.images} images")
        batcher = coordinator.model.queue.batcher
        try:
            reservation = batcher.hold(request.images)
        except QueueFull as full:
            self.send(SlotsRefused(request.request, str(full)))
            return
        try:
            leases = coordinator.slots.take(request.images)
        except QueueFull as full:
            reservation.release(request.images)
            self.send(SlotsRefused(request.request, str(full)))
            return
        for lease in leases:
            self._images[lease.slot] = _Image(reservation, engine, lease)
        slots = [lease.slot for lease in leases]
        self.send(SlotsGranted(request.request, slots, leases[0].layout.candidates_at))

    def _submit(self, message: Submit) -> None:
        image = self._images.get(message.slot)
        if image is None or image.submitting is not None:
            raise BadMessage(f"slot {message.slot} is not there to be submitted")
        hw = message.height, message.width
        if hw not in image.engine.artifact.metadata.buckets:
            raise BadMessage(f"{hw} is none of the model's buckets")
        canvas = Canvas(image.engine, image.lease.pixels(*hw), image.lease)
        deadline = math.inf
        if message.remaining_s is not None:
            deadline = asyncio.get_running_loop().time() + message.remaining_s
        image.submitting = asyncio.create_task(self._infer(image, canvas, deadline))

    async def _infer(self, image: _Image, canvas: Canvas, deadline: float) -> None:
        image.submitted = True
        slot = image.lease.slot
        try:
            answer = await image.reservation.submit(canvas, deadline)
        except ServerError as error:
            if isinstance(error, InferenceFailed):
                # The worker, which has the request's id, does not have the cause.
                logger.error("inference_failed", name=self.name, exc_info=error)
            self.send(Failed(slot, error.code, str(error)))
        except Exception:  # a fault of our own: the worker must not wait until its deadline
            logger.exception("inference_broken", name=self.name)
            self.send(Failed(slot, InferenceFailed.code, "the server failed; see its log"))
        else:
            self.send(Inferred(slot, len(answer.result), answer.queue_s, answer.inference_s))

    def _release(self, slot: int, *, reuse: bool = True) -> None:
        image = self._images.pop(slot, None)
        if image is None:
            raise BadMessage(f"slot {slot} is not there to be released")
        if not image.submitted:
            image.reservation.release()
        if image.submitting is not None:
            image.submitting.cancel()
        if reuse:
            image.lease.release()

    async def _reload(self, request: int) -> None:
        try:
            await self._coordinator.reload()
        except ServerError as error:
            self.send(Reloaded(request, error.code, str(error)))
        except Exception:  # a fault of our own: whoever asked must hear of it
            logger.exception("reload_broken")
            self.send(Reloaded(request, "reload_failed", "the server failed; see its log"))
        else:
            self.send(Reloaded(request, None, ""))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _lost(self) -> None:
        # At a drain the process may live a little longer, with threads that still write.
        ending = self._coordinator.ending.is_set()
        for slot in [*self._images]:
            self._release(slot, reuse=not ending)
        self.ready = False
        self._on_unresponsive()
        self._coordinator.lost(self)
        # It ends by itself when it sees the channel's end, unless it hangs. At a drain it has spans
        # and log lines to send before, and its supervisor sets the limit.
        if not ending:
            self._kill()
