"""The life of a detection service: start, detect, reload, drain, end. Knows no web framework."""

import asyncio
import contextvars
import math
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from server import suppression
from server.artifact import Artifact, Metadata
from server.batcher import Batcher, Slots
from server.choice import load_model
from server.concurrency import together
from server.cpus import available_cpus
from server.detector import ImageDetections, Prepared, finish, prepare_encoded, stacked
from server.engine import Engine
from server.errors import (
    BadInput,
    DeadlineExceeded,
    DeploymentError,
    Draining,
    NotReady,
    ReloadFailed,
    ServerError,
)
from server.logs import get_logger
from server.memory import return_freed_memory
from server.metrics import Metrics
from server.postprocess import DetectParameters
from server.settings import Settings

Given = ParamSpec("Given")
Result = TypeVar("Result")
State = Literal["starting", "ready", "draining", "failed"]
# When the service has failed, requests under way are told so, then the process ends.
FAILED_GRACE_S = 1.0
# Model calls take all CPUs; refusals and health should not have to wait for their turn, nor behind
# the pictures of a queue that fills up, which are all decoded at once.
MODEL_NICENESS = 5
DECODE_NICENESS = 2
MAX_NICENESS = 19  # that there is
NO_PIXELS = np.empty((0, 0, 3), np.uint8)
Candidates = NDArray[np.float32]

logger = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Found:
    """One image's detections and the seconds it spent in each stage."""

    detections: ImageDetections
    stage_s: dict[str, float]


@dataclass(frozen=True, slots=True)
class Inferred:
    """One image that came back from the model, with (K, 6) candidates to sort out.

    Its canvas is empty: a request of many images must not keep all their pixels to its end.
    """

    prepared: Prepared
    candidates: Candidates
    stage_s: dict[str, float]

    def finish(self, metadata: Metadata, parameters: DetectParameters) -> Found:
        """Its detections, and the seconds of every stage."""
        started = time.perf_counter()
        detections = finish(self.candidates, self.prepared, metadata, parameters)
        postprocess_s = time.perf_counter() - started
        return Found(detections, self.stage_s | {"postprocess": postprocess_s})


class Canvas(NamedTuple):
    """What waits for the model: one letterboxed image, and the engine that its request chose."""

    engine: Engine
    pixels: NDArray[np.uint8]  # (H, W, 3), RGB

    def bucket(self) -> tuple[Engine, tuple[int, ...]]:
        """Canvases with equal values fit into one batch."""
        return self.engine, self.pixels.shape


class Service:
    """One model behind a queue, with the threads it needs.

    Args:
        settings: limits and times.
        artifacts: the model to serve, in one or several precisions.
        open_engine: loads the best of them; called on a thread of its own, again at each reload.
        on_failure: called once when the service can't go on; `failure` then says why.
        rejection_reasons: error codes for the metrics.
        upload_bytes: asked by the metrics for the bytes that requests' bodies have in memory.
    """

    def __init__(
        self,
        settings: Settings,
        artifacts: Sequence[Artifact],
        *,
        open_engine: Callable[[Sequence[Artifact]], Engine],
        on_failure: Callable[[], None],
        rejection_reasons: Sequence[str],
        upload_bytes: Callable[[], int],
    ) -> None:
        self.settings = settings
        self.model_name = artifacts[0].metadata.name
        self.state: State = "starting"
        self.failure: BaseException | None = None
        self.engine: Engine | None = None
        self._decode_threads = settings.decode_threads or available_cpus()
        # Two, so that what is found needn't wait behind pictures that are still to be decoded.
        self._decoding = ThreadPoolExecutor(
            self._decode_threads, "decode", _be_nice, (DECODE_NICENESS,)
        )
        self.answering = ThreadPoolExecutor(self._decode_threads, "answer")
        self._loading = ThreadPoolExecutor(1, "load", _be_nice, (MODEL_NICENESS,))
        self._calling: ThreadPoolExecutor | None = None
        self._calls: dict[object, float] = {}  # start of each model call that runs
        self.batcher = Batcher[Canvas, Candidates](
            self._infer,
            bucket=Canvas.bucket,
            max_queue_delay_s=settings.max_queue_delay_s,
            max_queue_images=settings.max_queue_images,
        )
        self.metrics = Metrics(
            rejection_reasons,
            queue_images=lambda: self.batcher.queue_images,
            upload_bytes=upload_bytes,
            lanes=lambda: self.engine.lanes if self.engine else 0,
            busy_lanes=lambda: len(self._calls),
        )
        self._artifacts = artifacts
        self._open_engine = open_engine
        self._on_failure = on_failure
        self._limits: set[asyncio.Timeout] = set()
        self._reloading = asyncio.Lock()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Loads the model in the background, then serves; ends all threads on exit."""
        serving = asyncio.create_task(self._live())
        try:
            yield
        finally:
            serving.cancel()
            await asyncio.wait([serving])
            # Not awaited: a call that is stuck in the provider must not hold the event loop.
            for pool in (self._decoding, self.answering, self._loading, self._calling):
                if pool is not None:
                    pool.shutdown(wait=False, cancel_futures=True)

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

    def current(self) -> Engine:
        """The model that serves now. A request keeps it to its end, whatever is loaded meanwhile.

        Raises:
            NotReady: none is loaded yet.
        """
        if self.engine is None:
            raise NotReady("the model is being loaded")
        return self.engine

    @property
    def status(self) -> State | Literal["stuck"]:
        """The state; "stuck" where a model call does not return, so that no request is taken."""
        if self.state == "ready" and self._stuck_s() is not None:
            return "stuck"
        return self.state

    def refuse_unless_ready(self) -> None:
        """Raises `NotReady` or `Draining` unless requests are taken."""
        if self.state == "draining":
            raise Draining("the server is shutting down")
        if self.state == "starting":
            raise NotReady("the model is being loaded")
        self.refuse_unless_alive()

    def refuse_unless_alive(self) -> None:
        """Raises `NotReady` when only a new process can help: the model failed, or is stuck."""
        if self.state == "failed":
            raise NotReady("the model has stopped")
        stuck_s = self._stuck_s()
        if stuck_s is not None:
            raise NotReady(
                f"a model call has been running for {stuck_s:.0f} s; "
                f"stuck_after_s is {self.settings.stuck_after_s:g}"
            )

    def _stuck_s(self) -> float | None:
        """Seconds that a model call has been running which is stuck; None when none is."""
        oldest = min(self._calls.values(), default=math.inf)
        running_s = time.monotonic() - oldest
        return running_s if running_s > self.settings.stuck_after_s else None

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

    async def reload(self) -> Engine:
        """Reads, checks, loads and warms the model files anew, then serves them.

        Requests that began before are finished by the model that they began with. One reload
        follows the other.

        Raises:
            NotReady, Draining: requests are not taken now.
            ReloadFailed: the files can't be served; the old model goes on serving.
        """
        async with self._reloading:
            self.refuse_unless_ready()
            started = time.perf_counter()
            try:
                engine = await self._load(lambda: load_model(self.settings.model))
            except DeploymentError as error:
                logger.error("reload_failed", reason=str(error))
                self.metrics.reloads.labels("failed").inc()
                raise ReloadFailed(f"{error}; the model of before goes on serving") from error
            self.refuse_unless_ready()  # a signal may have come meanwhile
            self._serve_with(engine, "reloaded", started)
            self._loading.submit(return_freed_memory)
            self.metrics.reloads.labels("ok").inc()
            return engine

    async def detect(
        self,
        engine: Engine,
        encoded: Sequence[bytes],
        parameters: DetectParameters,
        deadline: float,
        answer: Callable[[list[Found | BadInput]], Result],
        *,
        pictures: bool = False,
    ) -> Result:
        """Images from bytes to detections, and to whatever is made of them.

        Args:
            engine: the model, as `current` gave it.
            encoded: whole image files.
            parameters: for all of them.
            deadline: seconds of the event loop's clock; later nothing is inferred.
            answer: gets one outcome per image, in their order, on a thread: what is wrong with an
                image is a value.
            pictures: `answer` decodes and draws, so that the answers of others must not wait
                behind it, and it has to wait with the images.

        Returns:
            What `answer` returned.

        Raises:
            QueueFull: at once, when there is not a place in the queue for each.
            InferenceFailed, DeadlineExceeded: of one image, and so of the request.
        """
        # The threads are shared by turns, too: a request of many has few at a time.
        turns = asyncio.Semaphore(self._decode_threads)
        images = len(encoded)
        with self.batcher.reserve(images) as slots, self._counting_failures(images):
            inferred = await together(
                self._infer_one(engine, each, slots, turns, deadline) for each in encoded
            )

        def finish_all() -> Result:
            metadata = engine.artifact.metadata
            outcomes = [
                each if isinstance(each, BadInput) else each.finish(metadata, parameters)
                for each in inferred
            ]
            for outcome in outcomes:
                if isinstance(outcome, Found):
                    self._observe(outcome.stage_s)
                    self.metrics.images.labels("ok").inc()
                else:
                    self.metrics.images.labels(outcome.code).inc()
            return answer(outcomes)

        return await _on(self._decoding if pictures else self.answering, finish_all)

    async def infer(
        self, engine: Engine, canvases: NDArray[np.uint8], deadline: float
    ) -> tuple[Candidates, dict[str, float]]:
        """Letterboxed images to candidates, through the same queue.

        Args:
            engine: the model, as `current` gave it.
            canvases: (B, H, W, 3) uint8, RGB; (H, W) one of the artifact's buckets.
            deadline: seconds of the event loop's clock; later nothing is inferred.

        Returns:
            (B, K, 6) float32, as `Engine.run` gives it; and the most seconds that any image spent
            in each stage.

        Raises:
            QueueFull, InferenceFailed, DeadlineExceeded: as `detect` does.
        """
        images = len(canvases)
        with self.batcher.reserve(images) as slots, self._counting_failures(images):
            answers = await together(
                slots.submit(Canvas(engine, pixels), deadline) for pixels in canvases
            )
        stages = [{"queue": each.queue_s, "inference": each.inference_s} for each in answers]
        for stage_s in stages:
            self._observe(stage_s)
        self.metrics.images.labels("ok").inc(images)
        longest_s = {stage: max(each[stage] for each in stages) for stage in stages[0]}
        return np.stack([each.result for each in answers]), longest_s

    async def on_thread(
        self, work: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs
    ) -> Result:
        """Runs the work of an answer on a thread, with the log context of the request."""
        return await _on(self.answering, work, *args, **kwargs)

    async def _infer_one(
        self,
        engine: Engine,
        encoded: bytes,
        slots: Slots[Canvas, Candidates],
        turns: asyncio.Semaphore,
        deadline: float,
    ) -> "Inferred | BadInput":
        try:
            async with turns:
                prepared, stage_s = await _on(self._decoding, self._prepare, engine, encoded)
        except BadInput as error:
            slots.give_back()
            return error
        answer = await slots.submit(Canvas(engine, prepared.canvas), deadline)
        stage_s["queue"] = answer.queue_s
        stage_s["inference"] = answer.inference_s
        return Inferred(replace(prepared, canvas=NO_PIXELS), answer.result, stage_s)

    @contextmanager
    def _counting_failures(self, images: int) -> Iterator[None]:
        """Counts a request's images as failed where one of them can't be inferred."""
        try:
            yield
        except ServerError as error:
            self.metrics.images.labels(error.code).inc(images)
            raise

    def _observe(self, stage_s: dict[str, float]) -> None:
        for stage, seconds in stage_s.items():
            self.metrics.stage_seconds[stage].observe(seconds)

    def _prepare(self, engine: Engine, encoded: bytes) -> tuple[Prepared, dict[str, float]]:
        return prepare_encoded(
            encoded,
            engine.artifact.metadata,
            max_pixels=self.settings.max_image_pixels,
            reduced=self.settings.jpeg_reduced_decoding,
        )

    async def _infer(self, batch: Sequence[Canvas], alone: bool) -> Sequence[Candidates]:
        assert self._calling is not None
        self.metrics.batch_size.observe(len(batch))
        engine = batch[0].engine
        call = object()
        self._calls[call] = time.monotonic()

        def run() -> list[Candidates]:
            images = stacked([canvas.pixels for canvas in batch])
            return list(engine.run(images, alone=alone))

        try:
            return await asyncio.get_running_loop().run_in_executor(self._calling, run)
        finally:
            del self._calls[call]

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
        engine = await self._load(lambda: self._artifacts)
        self._serve_with(engine, "ready", started)
        if self.state == "starting":  # not when a signal came meanwhile
            self.state = "ready"

    async def _load(self, read: Callable[[], Sequence[Artifact]]) -> Engine:
        def open_warm() -> Engine:
            suppression.load()  # not at the first request
            return_freed_memory()
            engine = self._open_engine(read())
            engine.warm_up()
            return engine

        return await asyncio.get_running_loop().run_in_executor(self._loading, open_warm)

    def _serve_with(self, engine: Engine, event: str, started: float) -> None:
        """Gives an engine to new requests; the one of before goes with its last request."""
        self.engine = engine
        # Not more threads than lanes: a CUDA session keeps handles and memory for each.
        before, self._calling = (
            self._calling,
            ThreadPoolExecutor(engine.lanes, "model", _be_nice, (MODEL_NICENESS,)),
        )
        if before is not None:
            before.shutdown(wait=False)  # what runs there runs to its end
        self.batcher.resize(lanes=engine.lanes, max_batch_size=engine.max_batch_size)
        model = engine.artifact.metadata
        running = {
            "name": model.name,
            "version": engine.artifact.version,
            "precision": model.precision,
            "provider": engine.provider,
            "device": engine.device,
        }
        self.metrics.set_model(**running)
        logger.info(
            event,
            requested_device=self.settings.device,
            load_s=round(time.perf_counter() - started, 3),
            reason=engine.reason,
            lanes=engine.lanes,
            max_batch_size=engine.max_batch_size,
            **running,
        )
        if model.certificate.verdict == "loss_accepted":
            logger.warning("this model was not shown to keep its accuracy (--accept-loss)")


async def _on(
    pool: ThreadPoolExecutor,
    work: Callable[Given, Result],
    *args: Given.args,
    **kwargs: Given.kwargs,
) -> Result:
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(
        pool, lambda: context.run(work, *args, **kwargs)
    )


def _be_nice(by: int) -> None:
    """Lets threads that are less nice go first where CPUs are short."""
    thread = threading.get_native_id()
    niceness = os.getpriority(os.PRIO_PROCESS, thread) + by
    with suppress(OSError):  # a sandbox may forbid it, and the pool would be broken for good
        os.setpriority(os.PRIO_PROCESS, thread, min(niceness, MAX_NICENESS))
