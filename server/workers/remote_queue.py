"""The queue of the engine process, as a worker sees it."""

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress

import numpy as np
from numpy.typing import NDArray

from server.errors import DeadlineExceeded, InferenceFailed, QueueFull, ServerError
from server.serving.fair_queue import InferenceResult
from server.serving.interface import Candidates, ImageReservation, LoadedModel, QueueStatus
from server.serving.threads import ClientLeft
from server.workers.messages import (
    Failed,
    Inferred,
    Message,
    Release,
    Reserve,
    SlotsGranted,
    SlotsRefused,
    Submit,
)
from server.workers.remote_engine import RemoteEngine
from server.workers.shared_memory import SharedFile


class RemoteQueue:
    """A `server.serving.interface.Queue` in another process.

    Args:
        shared: the memory that both have.
        send: sends a message to the engine process.
    """

    def __init__(self, shared: SharedFile, send: Callable[[Message], None]) -> None:
        self.shared = shared
        self._send = send
        self._requests = itertools.count()
        self._pending: dict[int, asyncio.Future[SlotsGranted]] = {}
        self._waiting: dict[
            int, tuple[RemoteReservation, asyncio.Future[InferenceResult[Candidates]]]
        ] = {}
        self._released: list[int] = []

    def status(self) -> QueueStatus:
        """How the queue of all workers is, as the engine process wrote it last."""
        return self.shared.status.read()

    @asynccontextmanager
    async def reserve(
        self, engine: LoadedModel, images: int
    ) -> AsyncIterator[Sequence[ImageReservation]]:
        """Holds places for a request's images; see `server.serving.interface.Queue`."""
        assert isinstance(engine, RemoteEngine)
        reservations = [
            RemoteReservation(self, slot, candidates_at)
            for slot, candidates_at in await self._reserve(engine.generation, images)
        ]
        try:
            yield reservations
        finally:
            for reservation in reservations:
                reservation.release()

    def handle(self, message: Message) -> None:
        """Takes what the engine process says of slots."""
        match message:
            case SlotsGranted():
                pending = self._pending.pop(message.request)
                if pending.done():  # the client left meanwhile
                    self._send(Release(message.slots))
                else:
                    pending.set_result(message)
            case SlotsRefused():
                pending = self._pending.pop(message.request)
                if not pending.done():
                    pending.set_exception(QueueFull(message.reason))
            case Inferred() | Failed():
                # A place that was released meanwhile is not there.
                reservation, result = self._waiting.pop(message.slot, (None, None))
                if reservation is None or result is None:
                    return
                if isinstance(message, Inferred):
                    answer = InferenceResult(
                        reservation.found(message.rows), message.queue_s, message.inference_s
                    )
                    reservation.release()
                    if not result.done():
                        result.set_result(answer)
                else:
                    reservation.release()
                    if not result.done():
                        result.set_exception(_error(message))

    async def _reserve(self, generation: int, images: int) -> list[tuple[int, int]]:
        """Slots, and where the candidates are."""
        request = next(self._requests)
        granted = asyncio.get_running_loop().create_future()
        self._pending[request] = granted
        self._send(Reserve(request, generation, images))
        try:
            answer: SlotsGranted = await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled() and granted.exception() is None:
                self._send(Release(granted.result().slots))  # it came in this very moment
            raise
        return [(slot, slot + answer.candidates_at) for slot in answer.slots]

    async def _infer(
        self, reservation: "RemoteReservation", slot: int, hw: tuple[int, int], deadline: float
    ) -> InferenceResult[Candidates]:
        loop = asyncio.get_running_loop()
        result: asyncio.Future[InferenceResult[Candidates]] = loop.create_future()
        self._waiting[slot] = (reservation, result)
        self._send(Submit(slot, *hw, max(0.0, deadline - loop.time())))
        return await result

    def _release(self, slot: int) -> None:
        self._waiting.pop(slot, None)
        if not self._released:
            asyncio.get_running_loop().call_soon(self._send_released)
        self._released.append(slot)

    def _send_released(self) -> None:
        released, self._released = self._released, []
        self._send(Release(released))


class RemoteReservation:
    """One image's slot in the shared memory."""

    def __init__(self, queue: RemoteQueue, slot: int, candidates: int) -> None:
        self._queue = queue
        self._slot = slot
        self._candidates = candidates
        self._hw: tuple[int, int] | None = None
        self._loop = asyncio.get_running_loop()
        self._released = self._writing = False
        # A request that is cut off leaves threads behind that still decode for it: they must not
        # write into what is another's by then.
        self._lock = threading.Lock()

    @contextmanager
    def canvas(self, hw: tuple[int, int]) -> Iterator[NDArray[np.uint8]]:
        """The slot's pixels; see `server.serving.interface.ImageReservation`."""
        with self._lock:
            if self._released:
                raise ClientLeft
            self._writing = True
        try:
            yield self._queue.shared.pixels(self._slot, *hw)
            self._hw = hw
        finally:
            with self._lock:
                self._writing = False
                released = self._released
            if released:
                with suppress(RuntimeError):  # the process ends, and its event loop has
                    self._loop.call_soon_threadsafe(self._queue._release, self._slot)

    async def submit(self, deadline: float) -> InferenceResult[Candidates]:
        """Submits it; see `server.serving.interface.ImageReservation`."""
        assert self._hw is not None
        return await self._queue._infer(self, self._slot, self._hw, deadline)

    def found(self, rows: int) -> Candidates:
        """A copy of what the model found."""
        return self._queue.shared.candidates(self._candidates, rows).copy()

    def release(self) -> None:
        """Frees the slot; safe to call again.

        A thread that writes into it frees it when it has ended; an inference that reads it is
        waited for in the engine process.
        """
        with self._lock:
            if self._released:
                return
            self._released = True
            if self._writing:
                return
        self._queue._release(self._slot)


def _error(failed: Failed) -> ServerError:
    known = (DeadlineExceeded, InferenceFailed)
    kind = next((each for each in known if each.code == failed.code), InferenceFailed)
    return kind(failed.reason)
