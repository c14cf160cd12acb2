"""The life of a detection service: start, detect, drain, end. Knows no web framework."""

import asyncio
import contextvars
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal, ParamSpec, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from server.artifact import Artifact
from server.batcher import Batcher, Slots
from server.cpus import available_cpus
from server.detector import ImageDetections, Prepared, finish, prepare_image
from server.errors import (
    ArtifactInvalid,
    BadInput,
    DeadlineExceeded,
    DeploymentError,
    Draining,
    InferenceFailed,
    NotReady,
    SessionLost,
)
from server.image import decode
from server.logs import get_logger
from server.metrics import Metrics
from server.postprocess import DetectParameters
from server.settings import Settings

Given = ParamSpec("Given")
Result = TypeVar("Result")
State = Literal["starting", "ready", "draining", "failed"]
# When the service has failed, requests under way are told so, then the process ends.
FAILED_GRACE_S = 1.0
Candidates = NDArray[np.float32]

logger = get_logger(__name__)


class OpenSession(Protocol):
    """What the service needs of `server.session.Session`."""

    @property
    def provider(self) -> str:
        """The execution provider that really runs."""

    @property
    def device(self) -> str:
        """The device that really runs."""

    def run(self, images: NDArray[np.uint8]) -> Candidates:
        """(B, H, W, 3) uint8 RGB to (B, K, 6) float32."""

    def warm_up(self, batch_sizes: Sequence[int]) -> None:
        """Runs every shape that will come once."""

    def close(self) -> None:
        """Releases the model."""


@dataclass(frozen=True, slots=True)
class Found:
    """One image's detections and the seconds it spent in each stage."""

    detections: ImageDetections
    stage_s: dict[str, float]


class Service:
    """One model behind a queue, with the threads it needs.

    Args:
        settings: limits and times.
        artifact: the model to serve.
        open_session: loads it; called on the session's own thread.
        on_failure: called once when the service can't go on; `failure` then says why.
        rejection_reasons: error codes for the metrics.
    """

    def __init__(
        self,
        settings: Settings,
        artifact: Artifact,
        *,
        open_session: Callable[[], OpenSession],
        on_failure: Callable[[], None],
        rejection_reasons: Sequence[str],
    ) -> None:
        self.settings = settings
        self.artifact = artifact
        self.state: State = "starting"
        self.failure: BaseException | None = None
        self.session: OpenSession | None = None
        self.pool = ThreadPoolExecutor(
            settings.decode_threads or available_cpus(), thread_name_prefix="image"
        )
        self.batcher = Batcher[Prepared, Candidates](
            self._infer,
            bucket=lambda prepared: prepared.bucket_hw,
            max_batch_size=settings.max_batch_size or 8,
            max_queue_delay_s=settings.max_queue_delay_s,
            max_queue_images=settings.max_queue_images,
        )
        self.metrics = Metrics(lambda: self.batcher.queue_images, rejection_reasons)
        self._open_session = open_session
        self._on_failure = on_failure
        self._session_thread = ThreadPoolExecutor(1, thread_name_prefix="session")
        self._limits: set[asyncio.Timeout] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Loads the model in the background, then serves; ends all threads on exit."""
        serving = asyncio.create_task(self._live())
        try:
            yield
        finally:
            serving.cancel()
            await asyncio.wait([serving])
            self.pool.shutdown(wait=False, cancel_futures=True)
            # What a lost device does when it is released is anybody's guess.
            if self.session is not None and self.state != "failed":
                self._session_thread.submit(self.session.close)
            # Not awaited: a call that is stuck in the provider must not hold the event loop.
            self._session_thread.shutdown(wait=False)

    @asynccontextmanager
    async def accept(self) -> AsyncIterator[float]:
        """The time that one request has; gives its deadline on the event loop's clock.

        Raises:
            NotReady, Draining, QueueFull: at once, when the service takes no request now.
            DeadlineExceeded: `request_timeout_s` passed inside the block.
            Draining: the drain time passed inside the block.
            NotReady: the service failed inside the block.
        """
        self.refuse_unless_ready()
        self.batcher.refuse_when_full()
        timeout_s = self.settings.request_timeout_s
        limit = asyncio.timeout(timeout_s)
        try:
            async with limit:
                self._limits.add(limit)
                when = limit.when()
                assert when is not None
                yield when
        except TimeoutError:
            if not limit.expired():
                raise
            if self.state == "draining":
                raise Draining("the server shut down before the answer was ready") from None
            if self.state == "failed":
                raise NotReady("the model has stopped") from None
            raise DeadlineExceeded(f"the request took over {timeout_s:g} s") from None
        finally:
            self._limits.discard(limit)

    def refuse_unless_ready(self) -> None:
        """Raises `NotReady` or `Draining` unless requests are taken."""
        if self.state == "draining":
            raise Draining("the server is shutting down")
        if self.state == "starting":
            raise NotReady("the model is being loaded")
        if self.state == "failed":
            raise NotReady("the model has stopped")

    def begin_drain(self) -> None:
        """Takes no new requests; those accepted have `drain_timeout_s` to finish."""
        if self.state in ("draining", "failed"):
            return
        self.state = "draining"
        self._end_requests_in(self.settings.drain_timeout_s)

    def _end_requests_in(self, seconds: float) -> None:
        end = asyncio.get_running_loop().time() + seconds
        for limit in self._limits:
            if not limit.expired():
                limit.reschedule(min(end, limit.when() or end))

    async def detect_image(
        self,
        encoded: bytes,
        parameters: DetectParameters,
        slots: Slots[Prepared, Candidates],
        deadline: float,
    ) -> Found | BadInput:
        """One image from bytes to detections; what is wrong with the image is a value."""
        try:
            prepared, stage_s = await self.on_pool(self._prepare, encoded)
        except BadInput as error:
            slots.give_back()
            return error
        answer = await slots.submit(prepared, deadline)
        started = time.perf_counter()
        detections = await self.on_pool(
            finish, answer.result, prepared, self.artifact.metadata, parameters
        )
        stage_s["queue"] = answer.queue_s
        stage_s["inference"] = answer.inference_s
        stage_s["postprocess"] = time.perf_counter() - started
        for stage, seconds in stage_s.items():
            self.metrics.stage_seconds[stage].observe(seconds)
        return Found(detections, stage_s)

    async def on_pool(
        self, work: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs
    ) -> Result:
        """Runs work on the image threads, with the log context of the request."""
        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(
            self.pool, lambda: context.run(work, *args, **kwargs)
        )

    def _prepare(self, encoded: bytes) -> tuple[Prepared, dict[str, float]]:
        started = time.perf_counter()
        image = decode(encoded, max_pixels=self.settings.max_image_pixels)
        decoded = time.perf_counter()
        prepared = prepare_image(image, self.artifact.metadata)
        placed = time.perf_counter()
        return prepared, {"decode": decoded - started, "letterbox": placed - decoded}

    async def _infer(self, batch: Sequence[Prepared]) -> Sequence[Candidates]:
        session = self.session
        assert session is not None
        self.metrics.batch_size.observe(len(batch))

        def run() -> list[Candidates]:
            try:
                return list(session.run(np.stack([prepared.canvas for prepared in batch])))
            except InferenceFailed as failed:
                refuse_a_lost_session(session, failed)
                raise

        return await asyncio.get_running_loop().run_in_executor(self._session_thread, run)

    async def _live(self) -> None:
        try:
            await self._start()
            await self.batcher.serve()
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # the loop itself: nothing can be served any more
            self.state = "failed"
            self.failure = error
            # A deployment error speaks for itself; anything else needs its traceback.
            expected = isinstance(error, DeploymentError)
            logger.critical("service_failed", reason=str(error), exc_info=not expected)
            self._end_requests_in(FAILED_GRACE_S)
            self._on_failure()

    async def _start(self) -> None:
        started = time.perf_counter()
        loop = asyncio.get_running_loop()
        self.session = await loop.run_in_executor(self._session_thread, self._open_warm)
        model = self.artifact.metadata
        running = {
            "name": model.name,
            "version": self.artifact.version,
            "precision": model.precision,
            "provider": self.session.provider,
            "device": self.session.device,
        }
        self.metrics.set_model(**running)
        if self.state == "starting":  # not when a signal came meanwhile
            self.state = "ready"
        took_s = round(time.perf_counter() - started, 3)
        logger.info("ready", requested_device=self.settings.device, load_s=took_s, **running)
        if model.certificate.verdict == "loss_accepted":
            logger.warning("this model was not shown to keep its accuracy (--accept-loss)")

    def _open_warm(self) -> OpenSession:
        session = self._open_session()
        try:
            session.warm_up(range(1, (self.settings.max_batch_size or 8) + 1))
        except InferenceFailed as error:
            message = f"{self.artifact.path}: the warm-up failed: {error.__cause__ or error}"
            raise ArtifactInvalid(message) from error
        return session


def refuse_a_lost_session(session: OpenSession, failed: InferenceFailed) -> None:
    """Tells a batch that failed from a device that is lost, which fails every batch to come.

    A CUDA context that met an illegal access or a driver reset never recovers in its process.

    Raises:
        SessionLost: the session fails even on what it ran at the warm-up.
    """
    try:
        session.warm_up([1])
    except InferenceFailed:
        message = f"the session on {session.device} is lost: {failed.__cause__ or failed}"
        raise SessionLost(message) from failed
