"""What requests need of the model, which is in this process, or in another that several share.

`server.serving.local_model` and `server.serving.model_runner` are the one,
`server.workers.remote_model` is the other.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from server.errors import Draining, NotReady, QueueFull
from server.inference.artifact import Artifact
from server.observability.metrics import ServerStatus
from server.serving.body_budget import ByteBudget
from server.serving.fair_queue import InferenceResult
from server.settings import Settings

State = Literal["starting", "ready", "draining", "failed"]
Candidates = NDArray[np.float32]

# An engine process writes its status every second, also when nothing happens.
SILENT_S = 10.0


class QueueStatus(NamedTuple):
    """The queue before the model, and the inferences that empty it, at one moment.

    Attributes:
        queue_images: images that wait, or are reserved a place.
        retry_after_s: seconds until the queue should be empty at the measured rate; 1..60.
        instances: inferences that may run side by side; 0 before there is a model.
        active_inferences: inferences that run.
        oldest_inference: when the oldest of them began; inf without any.
        written: the moment. Both in seconds of `time.monotonic`, which all processes share.
    """

    queue_images: int
    retry_after_s: int
    instances: int
    active_inferences: int
    oldest_inference: float = math.inf
    written: float = math.inf

    def hung_reason(self, inference_watchdog_s: float) -> str | None:
        """Why no inference can be expected to return; None where none is hung."""
        now = time.monotonic()
        running_s, silent_s = now - self.oldest_inference, now - self.written
        limit = f"inference_watchdog_s is {inference_watchdog_s:g}"
        if running_s > inference_watchdog_s:
            return f"an inference has been running for {running_s:.0f} s; {limit}"
        if silent_s > max(inference_watchdog_s, SILENT_S):
            return f"the engine process has been silent for {silent_s:.0f} s; {limit}"
        return None

    def refuse_when_full(self, max_queue_images: int) -> None:
        """Raises `QueueFull` when not even one more image would find a place."""
        if self.queue_images >= max_queue_images:
            raise QueueFull(
                f"{self.queue_images} images wait; max_queue_images is {max_queue_images}"
            )


class LoadedModel(Protocol):
    """What is known of a model that is loaded; `server.inference.engine.Engine` is one.

    A request keeps it to its end, and the model stays loaded for as long as somebody does.
    """

    @property
    def artifact(self) -> Artifact:
        """What is loaded."""

    @property
    def reason(self) -> str:
        """Why this file, in words."""

    @property
    def provider(self) -> str:
        """The execution provider that really runs."""

    @property
    def device(self) -> str:
        """The device that really runs."""

    @property
    def cpu_fallback(self) -> str | None:
        """In words, why on the CPU though a GPU was to be expected; else None."""

    @property
    def instances(self) -> int:
        """Inferences that may run at the same time."""

    @property
    def max_batch_size(self) -> int:
        """Images of one call."""


class ImageReservation(Protocol):
    """One image's place in the queue."""

    def canvas(self, hw: tuple[int, int]) -> AbstractContextManager[NDArray[np.uint8]]:
        """The memory that the model reads, to be written inside of the block; on any thread.

        Args:
            hw: (H, W), one of the model's buckets; the canvas is (H, W, 3) uint8, RGB.

        Raises:
            ClientLeft: the place was released, because nobody waits for the image any more.
        """

    async def submit(self, deadline: float) -> InferenceResult[Candidates]:
        """Submits the canvas and waits for its own (K, 6) candidates.

        Args:
            deadline: seconds of the event loop's clock; later it is not run any more.

        Raises:
            InferenceFailed: the model failed on it.
            DeadlineExceeded: the deadline passed while it waited.
        """

    def release(self) -> None:
        """Frees the place, where its image was not submitted; safe to call again."""


class Queue(Protocol):
    """The one queue before the model."""

    def status(self) -> QueueStatus:
        """How it is now; on any thread."""

    def reserve(
        self, engine: LoadedModel, images: int
    ) -> AbstractAsyncContextManager[Sequence[ImageReservation]]:
        """Holds places for a request's images; those not submitted are free again afterwards.

        Raises:
            QueueFull: at once, when there is not a place for each.
        """


class Model(Protocol):
    """The model's life, as requests see it.

    Attributes:
        changed: called after each change of state or engine, on the event loop; to be set once.
    """

    changed: Callable[[], None]

    @property
    def queue(self) -> Queue:
        """The one queue before it."""

    @property
    def name(self) -> str:
        """The model's name, also before it is loaded."""

    @property
    def state(self) -> State:
        """The state of the whole server."""

    @property
    def failure(self) -> BaseException | None:
        """Why it failed."""

    @property
    def engine(self) -> LoadedModel | None:
        """The model that serves now."""

    @property
    def queue_bytes(self) -> int:
        """What the queue, and a model elsewhere, leave this process less of its memory."""

    def running(self) -> AbstractAsyncContextManager[None]:
        """Loads and serves; ends all threads on exit."""

    def begin_drain(self) -> None:
        """Takes no new requests."""

    async def reload(self, read_keys: Callable[[], None]) -> None:
        """Serves the model files and the keys as they are now.

        Args:
            read_keys: reads the keys of this process; a model elsewhere sees to them itself.

        Raises:
            NotReady, Draining: requests are not taken now.
            ReloadFailed: the files can't be served, or something else went wrong, which the log
                has; the old model goes on serving.
        """

    async def collect_metrics(self) -> Callable[[], bytes]:
        """Asks for the metrics of the whole server.

        Returns:
            What makes them a text in the Prometheus format, which takes milliseconds: a GPU's
            driver is asked.

        Raises:
            NotReady: a model in another process does not answer.
        """


def refuse_unless_ready(model: Model, settings: Settings) -> None:
    """Raises `NotReady` or `Draining` unless requests are accepted."""
    if model.state == "draining":
        raise Draining("the server is shutting down")
    if model.state == "starting":
        raise NotReady("the model is being loaded")
    refuse_unless_alive(model, settings)


def refuse_unless_alive(model: Model, settings: Settings) -> None:
    """Raises `NotReady` when only a new process can help: the model failed, or is hung."""
    if model.state == "failed":
        raise NotReady("the model has stopped")
    hung_reason = model.queue.status().hung_reason(settings.inference_watchdog_s)
    if hung_reason is not None:
        raise NotReady(hung_reason)


def server_status(
    state: str, queue: QueueStatus, settings: Settings, body_budget: ByteBudget
) -> ServerStatus:
    """What metrics report of a process, at one moment."""
    return ServerStatus(
        state=state,
        queue_images=queue.queue_images,
        max_queue_images=settings.max_queue_images,
        inflight_body_bytes=body_budget.taken,
        max_inflight_body_bytes=body_budget.max_bytes,
        instances=queue.instances,
        active_inferences=queue.active_inferences,
    )
