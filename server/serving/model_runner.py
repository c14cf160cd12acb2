"""The queue before a model in this process, and the threads that call it."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from server.inference.detector import stacked
from server.inference.engine import Engine
from server.observability.metrics import Metrics
from server.serving.batcher import Batcher, Reservation
from server.serving.fair_queue import InferenceResult
from server.serving.interface import Candidates, ImageReservation, LoadedModel, QueueStatus
from server.serving.threads import MODEL_NICENESS, nice_pool
from server.settings import Settings


class SharedBuffer(Protocol):
    """Memory of a canvas that others use again; it must not be while a call reads or writes it."""

    def enter(self) -> None:
        """A call begins to use it; on the event loop, as `leave`."""

    def leave(self) -> None:
        """The call uses it no more."""

    def keep(self, candidates: Candidates) -> Candidates:
        """Copies what the model found to where it is looked for; on the call's thread."""


class Canvas(NamedTuple):
    """What waits for the model: one letterboxed image, and the engine that its request chose.

    Attributes:
        engine: what runs it.
        pixels: (H, W, 3) uint8, RGB.
        buffer: the memory that they are in, where it is not theirs alone.
    """

    engine: Engine
    pixels: NDArray[np.uint8]
    buffer: SharedBuffer | None = None

    def bucket(self) -> tuple[Engine, tuple[int, ...]]:
        """Canvases with equal values fit into one batch."""
        return self.engine, self.pixels.shape


class ModelRunner:
    """The one queue, and the inferences that empty it.

    Args:
        settings: limits.
        metrics: where calls are counted.

    Attributes:
        batcher: the queue, to be served.
        on_change: called after each begin and end of a call, on the event loop.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._metrics = metrics
        self._threads: ThreadPoolExecutor | None = None
        self._inferences: dict[object, float] = {}  # start of each inference that runs
        self.on_change: Callable[[], None] = lambda: None
        self.batcher = Batcher[Canvas, Candidates](
            self._infer,
            bucket=Canvas.bucket,
            max_queue_delay_s=settings.max_queue_delay_s,
            max_queue_images=settings.max_queue_images,
        )

    def status(self) -> QueueStatus:
        """How the queue is now; on any thread."""
        return QueueStatus(
            queue_images=self.batcher.queue_images,
            retry_after_s=self.batcher.retry_after_s(),
            instances=self.batcher.instances if self._threads else 0,
            active_inferences=len(self._inferences),
            # A copy, made in one step: metrics are read on another thread.
            oldest_inference=min(list(self._inferences.values()), default=math.inf),
            written=time.monotonic(),
        )

    @asynccontextmanager
    async def reserve(
        self, engine: LoadedModel, images: int
    ) -> AsyncIterator[Sequence[ImageReservation]]:
        """Holds places for a request's images; see `server.serving.interface.Queue`."""
        assert isinstance(engine, Engine)
        with self.batcher.reserve(images) as reservation:
            yield [_LocalReservation(engine, reservation) for _ in range(images)]

    def resize_for(self, engine: Engine) -> None:
        """Makes room for as many inferences, and as large ones, as an engine takes."""
        # Not more threads than instances: a CUDA session keeps handles and memory for each.
        before, self._threads = self._threads, nice_pool(engine.instances, "model", MODEL_NICENESS)
        if before is not None:
            before.shutdown(wait=False)  # what runs there runs to its end
        self.batcher.resize(
            instances=engine.instances,
            max_batch_size=engine.max_batch_size,
            spread=engine.device == "cpu",  # each instance has CPUs of its own; a GPU is shared
        )

    def shut_down(self) -> None:
        """Ends the threads, without waiting for a call that is hung in the provider."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def _infer(self, batch: Sequence[Canvas], sole: bool) -> Sequence[Candidates]:
        assert self._threads is not None
        self._metrics.batch_size.observe(len(batch))
        engine = batch[0].engine
        buffers = [canvas.buffer for canvas in batch if canvas.buffer]
        call, began = object(), time.monotonic()
        self._inferences[call] = began
        for buffer in buffers:
            buffer.enter()
        self.on_change()

        def run() -> list[Candidates]:
            images = stacked([canvas.pixels for canvas in batch])
            found = engine.run(images, sole=sole)
            return [
                canvas.buffer.keep(rows) if canvas.buffer else rows
                for canvas, rows in zip(batch, found, strict=True)
            ]

        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, run)
        finally:
            del self._inferences[call]
            self._metrics.inference_busy_seconds.inc(time.monotonic() - began)
            for buffer in buffers:
                buffer.leave()
            self.on_change()


class _LocalReservation:
    """A place in the queue of this process; a `server.serving.interface.ImageReservation`."""

    def __init__(self, engine: Engine, reservation: Reservation[Canvas, Candidates]) -> None:
        self._engine = engine
        self._reservation: Reservation[Canvas, Candidates] | None = reservation
        self._canvas: NDArray[np.uint8] | None = None

    @contextmanager
    def canvas(self, hw: tuple[int, int]) -> Iterator[NDArray[np.uint8]]:
        self._canvas = np.empty((*hw, 3), np.uint8)
        yield self._canvas

    async def submit(self, deadline: float) -> InferenceResult[Candidates]:
        assert self._canvas is not None
        assert self._reservation is not None
        # A request of many images must not keep all their pixels to its end.
        canvas, self._canvas = Canvas(self._engine, self._canvas), None
        reservation, self._reservation = self._reservation, None
        return await reservation.submit(canvas, deadline)

    def release(self) -> None:
        if self._reservation is not None:
            self._reservation.release()
            self._reservation = None
