"""The way of images through the server: decode, queue, model call, detections, answer."""

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from server.artifact import Metadata
from server.batcher import Batcher, Slots
from server.byte_budget import ByteBudget
from server.concurrency import together
from server.cpus import available_cpus
from server.decode_memory import Claim
from server.decoding import Decoding
from server.detector import ImageDetections, Prepared, finish, prepare_encoded, stacked
from server.engine import Engine
from server.errors import BadInput, ServerError
from server.image import read_header
from server.image_memory import picture_bytes
from server.metrics import Metrics
from server.postprocess import DetectParameters
from server.settings import Settings
from server.threads import MODEL_NICENESS, nice_pool, on_pool

Given = ParamSpec("Given")
Result = TypeVar("Result")
NO_PIXELS = np.empty((0, 0, 3), np.uint8)
Candidates = NDArray[np.float32]


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


class Pipeline:
    """All images of all requests on their way to one queue and back, with the threads for it.

    Args:
        settings: limits and threads.
        rejection_reasons: error codes for the metrics.
        uploads: what requests' bodies have in memory, for the metrics.
        state: asked by the metrics for the state of the server.

    Attributes:
        batcher: the queue, to be served.
        metrics: of the whole server.
        answering: threads that make answers.
        decoding: threads that decode images, and the memory for it.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        rejection_reasons: Sequence[str],
        uploads: ByteBudget,
        state: Callable[[], str],
    ) -> None:
        self._settings = settings
        threads = settings.decode_threads or available_cpus()
        # Two, so that what is found needn't wait behind pictures that are still to be decoded.
        self.decoding = Decoding(threads, settings.max_image_pixels)
        self.answering = ThreadPoolExecutor(threads, "answer")
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
            upload_bytes=lambda: uploads.taken,
            lanes=lambda: self.batcher.lanes if self._calling else 0,
            busy_lanes=lambda: len(self._calls),
            state=state,
            max_queue_images=settings.max_queue_images,
            max_upload_bytes=uploads.max_bytes,
        )

    def arrange_for(self, engine: Engine) -> None:
        """Makes room for as many model calls, and as large ones, as an engine takes."""
        # Not more threads than lanes: a CUDA session keeps handles and memory for each.
        before, self._calling = self._calling, nice_pool(engine.lanes, "model", MODEL_NICENESS)
        if before is not None:
            before.shutdown(wait=False)  # what runs there runs to its end
        self.batcher.resize(lanes=engine.lanes, max_batch_size=engine.max_batch_size)

    def shut_down(self) -> None:
        """Ends the threads, without waiting for a call that is stuck in the provider."""
        self.decoding.shut_down()
        for pool in (self.answering, self._calling):
            if pool is not None:
                pool.shutdown(wait=False, cancel_futures=True)

    def stuck_s(self) -> float | None:
        """Seconds that a model call has been running which is stuck; None when none is."""
        # A copy, made in one step: metrics are read on another thread.
        oldest = min(list(self._calls.values()), default=math.inf)
        running_s = time.monotonic() - oldest
        return running_s if running_s > self._settings.stuck_after_s else None

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
            pictures: `answer` decodes and draws, one image after the other, so that the answers
                of others must not wait behind it, and it has to wait with the images.

        Returns:
            What `answer` returned.

        Raises:
            QueueFull: at once, when there is not a place in the queue for each.
            InferenceFailed, DeadlineExceeded: of one image, and so of the request.
            TooLarge: there is never memory for a picture.
        """
        # The threads are shared by turns, too: a request of many has few at a time.
        turns = asyncio.Semaphore(self.decoding.threads)
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

        if not pictures:
            return await on_pool(self.answering, finish_all)

        def draw_all(claim: Claim) -> Result:
            for file, outcome in zip(encoded, inferred, strict=True):
                if isinstance(outcome, Inferred):
                    claim.require(picture_bytes(file, read_header(file)))
            return finish_all()

        return await self.decoding.run(draw_all)

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
        return await on_pool(self.answering, work, *args, **kwargs)

    async def _infer_one(
        self,
        engine: Engine,
        encoded: bytes,
        slots: Slots[Canvas, Candidates],
        turns: asyncio.Semaphore,
        deadline: float,
    ) -> Inferred | BadInput:
        try:
            async with turns:
                prepared, stage_s = await self._prepare(engine, encoded)
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

    async def _prepare(self, engine: Engine, encoded: bytes) -> tuple[Prepared, dict[str, float]]:
        def prepare(claim: Claim) -> tuple[Prepared, dict[str, float]]:
            return prepare_encoded(
                encoded,
                engine.artifact.metadata,
                max_pixels=self._settings.max_image_pixels,
                reduced=self._settings.jpeg_reduced_decoding,
                require=claim.require,
            )

        return await self.decoding.run(prepare)

    async def _infer(self, batch: Sequence[Canvas], alone: bool) -> Sequence[Candidates]:
        assert self._calling is not None
        self.metrics.batch_size.observe(len(batch))
        engine = batch[0].engine
        call, began = object(), time.monotonic()
        self._calls[call] = began

        def run() -> list[Candidates]:
            images = stacked([canvas.pixels for canvas in batch])
            return list(engine.run(images, alone=alone))

        try:
            return await asyncio.get_running_loop().run_in_executor(self._calling, run)
        finally:
            del self._calls[call]
            self.metrics.lane_seconds.inc(time.monotonic() - began)
