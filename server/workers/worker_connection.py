"""The model process' end of the line to one front: its requests, and the slots that it has."""

import asyncio
import math
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

from server.errors import InferenceFailed, QueueFull, ServerError
from server.inference.engine import Engine
from server.observability.logs import get_logger
from server.observability.metrics_merge import Snapshot
from server.serving.batcher import Slots
from server.serving.interface import Candidates
from server.serving.local_model import OwnModel
from server.serving.model_runner import Canvas
from server.workers.messages import (
    BadMessage,
    Done,
    Dropped,
    Failed,
    Granted,
    Heard,
    Line,
    Measure,
    Message,
    Refused,
    Release,
    Reload,
    Reloaded,
    Reserve,
    Sampled,
    Submit,
    Unfit,
    Up,
)
from server.workers.shared_memory import Lease
from server.workers.shared_memory import Slots as SharedSlots

QUIET_BEATS = 3  # without an answer, after which a front gets no connections

logger = get_logger(__name__)


class LinkOwner(Protocol):
    """What a link asks of the `Hub` that has it, and that imports this module."""

    model: OwnModel
    slots: SharedSlots

    def engine(self, generation: int) -> Engine:
        """A model that some front still has; `KeyError` where none has."""

    def publish_soon(self) -> None:
        """Something has changed that all fronts see."""

    def heard(self, link: "FrontLink", number: int) -> None:
        """A front has taken over what it was told."""

    def dropped(self, link: "FrontLink", generation: int) -> None:
        """A front has no request with a model any more."""

    def lost(self, link: "FrontLink") -> None:
        """A front is gone, with its requests."""

    def metrics_came(self, link: "FrontLink") -> None:
        """A front has answered `Sample`, or will not."""

    async def measure(self, link: "FrontLink", request: int) -> None:
        """Answers a front with the metrics of all."""

    async def reload(self) -> None:
        """Serves the model and the keys as they are now, in all fronts."""


@dataclass(eq=False, slots=True)
class _Image:
    """One image of a front's request.

    Attributes:
        places: those of its request in the queue.
        engine: that its request began with.
        lease: its slot.
        submitting: what waits for its turn, once it is submitted.
        submitted: whether that has begun.
    """

    places: Slots[Canvas, Candidates]
    engine: Engine
    lease: Lease
    submitting: asyncio.Task[None] | None = None
    submitted: bool = False


class FrontLink:
    """One front.

    Args:
        name: such as "http-1".
        hub: what it talks to.
        takes: called when it takes connections, also again.
        takes_none: called when it does not answer, and others had better have them; and when it
            is gone.
        kill: ends the process.

    Attributes:
        line: to it.
        up: it takes connections.
        unfit: why it can't start as the server was deployed.
        heard: the number of the last `Told` that it took over.
        silent_beats: for how many seconds it has not answered.
        sampled: its metrics, as it said last.
        sample_due: set when they came.
    """

    def __init__(
        self,
        name: str,
        hub: LinkOwner,
        *,
        takes: Callable[[], None],
        takes_none: Callable[[], None],
        kill: Callable[[], None],
    ) -> None:
        self.name = name
        self.line = Line(self._handle, lost=self._lost, handled=hub.publish_soon)
        self.send = self.line.send
        self.up = False
        self.unfit: str | None = None
        self.heard = 0
        self.silent_beats = 0
        self.sampled: Snapshot = []
        self.sample_due = asyncio.Event()
        self._hub = hub
        self._takes = takes
        self._takes_none = takes_none
        self._kill = kill
        self._images: dict[int, _Image] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def quiet(self) -> bool:
        """It hangs, or is busy beyond answering."""
        return self.silent_beats >= QUIET_BEATS

    def beat(self, number: int) -> None:
        """A second has passed; it was asked with the number at the last one.

        Counted in beats: when the machine slept, nobody was silent.
        """
        quiet = self.quiet
        self.silent_beats = self.silent_beats + 1 if self.heard < number else 0
        if self.up and self.quiet != quiet:
            (self._takes_none if self.quiet else self._takes)()

    def end(self) -> None:
        """Ends the front at once; it gets no more connections, whatever it said before."""
        self.up = False
        self._takes_none()
        self.line.close()
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
            case Heard():
                self._hub.heard(self, message.number)
            case Sampled():
                self.sampled = message.snapshot
                self._hub.metrics_came(self)
            case Measure():
                self._start(self._hub.measure(self, message.request))
            case Reload():
                self._start(self._reload(message.request))
            case Dropped():
                self._hub.dropped(self, message.generation)
            case Up():
                self.up = True
                self.silent_beats = 0  # it starts slowly, and this is its sign of life
                self._takes()
            case Unfit():
                self.unfit = message.reason
            case _:
                raise BadMessage(f"{type(message).__name__} from a front")

    def _reserve(self, asked: Reserve) -> None:
        hub = self._hub
        try:
            engine = hub.engine(asked.generation)
        except KeyError:
            raise BadMessage(f"no model of generation {asked.generation}") from None
        if asked.images < 1:
            raise BadMessage(f"{asked.images} images")
        batcher = hub.model.queue.batcher
        try:
            places = batcher.hold(asked.images)
        except QueueFull as full:
            self.send(Refused(asked.request, str(full)))
            return
        try:
            leases = hub.slots.take(asked.images)
        except QueueFull as full:
            places.give_back(asked.images)
            self.send(Refused(asked.request, str(full)))
            return
        for lease in leases:
            self._images[lease.slot] = _Image(places, engine, lease)
        slots = [lease.slot for lease in leases]
        self.send(Granted(asked.request, slots, leases[0].room.candidates_at))

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
            answer = await image.places.submit(canvas, deadline)
        except ServerError as error:
            if isinstance(error, InferenceFailed):
                # The front, which has the request's id, does not have the cause.
                logger.error("inference_failed", name=self.name, exc_info=error)
            self.send(Failed(slot, error.code, str(error)))
        except Exception:  # a fault of our own: the front must not wait until its deadline
            logger.exception("inference_broken", name=self.name)
            self.send(Failed(slot, InferenceFailed.code, "the server failed; see its log"))
        else:
            self.send(Done(slot, len(answer.result), answer.queue_s, answer.inference_s))

    def _release(self, slot: int) -> None:
        image = self._images.pop(slot, None)
        if image is None:
            raise BadMessage(f"slot {slot} is not there to be released")
        if not image.submitted:
            image.places.give_back()
        if image.submitting is not None:
            image.submitting.cancel()
        image.lease.release()

    async def _reload(self, request: int) -> None:
        try:
            await self._hub.reload()
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
        for slot in [*self._images]:
            self._release(slot)
        self.up = False
        self._takes_none()
        self._hub.lost(self)
        self._kill()  # it ends by itself when it sees the line's end, unless it hangs
