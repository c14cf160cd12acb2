"""The way of images through the server: decode, queue, inference, detections, answer."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from server.errors import BadInput, ServerError, TooLarge
from server.host import available_cpus
from server.inference.artifact import Metadata
from server.inference.detector import ImageDetections, Prepared, finish, prepare_encoded
from server.observability.metrics import Metrics
from server.serving.decode_pool import DecodePool, MemoryReservation
from server.serving.interface import Candidates, ImageReservation, LoadedModel, Queue
from server.serving.threads import on_pool, together
from server.settings import Settings
from server.vision.decode import image_bytes, read_header
from server.vision.nms import DetectParameters

Params = ParamSpec("Params")
Result = TypeVar("Result")
NO_PIXELS = np.empty((0, 0, 3), np.uint8)


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


def decoded_pixels(file: bytes, max_image_pixels: int) -> int:
    """Pixels that decoding a file makes, by its header; 0 where it is refused without decoding."""
    try:
        pixels = read_header(file).pixels
    except BadInput:
        return 0
    return pixels if pixels <= max_image_pixels else 0


class Pipeline:
    """All images of all requests on their way to one queue and back, with the threads for it.

    Args:
        settings: limits and threads.
        queue: before the model.
        metrics: where images and their times are counted.

    Attributes:
        response_threads: threads that make answers.
        decoding: threads that decode images, and the memory for it.
    """

    def __init__(self, settings: Settings, queue: Queue, metrics: Metrics) -> None:
        self._settings = settings
        self._queue = queue
        self._metrics = metrics
        threads = settings.decode_threads or available_cpus()
        # Two, so that what is found needn't wait behind images that are still to be decoded.
        self.decoding = DecodePool(threads, settings.max_image_pixels)
        self.response_threads = ThreadPoolExecutor(threads, "respond")

    def shut_down(self) -> None:
        """Ends the threads."""
        self.decoding.shut_down()
        self.response_threads.shutdown(wait=False, cancel_futures=True)

    async def detect(
        self,
        engine: LoadedModel,
        encoded: Sequence[bytes],
        parameters: DetectParameters,
        deadline: float,
        respond: Callable[[list[Found | BadInput]], Result],
        *,
        draws: bool = False,
        left: threading.Event | None = None,
    ) -> Result:
        """Images from bytes to detections, and to whatever is made of them.

        Args:
            engine: the model, as `current` gave it.
            encoded: whole image files.
            parameters: for all of them.
            deadline: seconds of the event loop's clock; later nothing is inferred.
            respond: gets one outcome per image, in their order, on a thread: what is wrong with an
                image is a value.
            draws: `respond` decodes and draws, one image after the other, so that the answers
                of others must not wait behind it, and it has to wait with the images.
            left: set when nobody waits for the answer any more; then no image begins to be decoded.

        Returns:
            What `respond` returned.

        Raises:
            QueueFull: at once, when there is not a place in the queue for each.
            InferenceFailed, DeadlineExceeded: of one image, and so of the request.
            TooLarge: the images have more than `max_request_pixels` together; or there is never
                memory for an image.
            ClientLeft: `left` was set before the last image was decoded.
        """
        # The threads are shared fairly, too: a request of many has few at a time.
        decode_slots = asyncio.Semaphore(self.decoding.threads)
        images = len(encoded)
        if images > 1:  # a single one of `max_image_pixels` is always within those of a request
            # Not on a decode thread: a full queue could not be refused before one is free.
            await self.on_thread(self._refuse_pixels, encoded)
        async with self._queue.reserve(engine, images) as reservations:
            with self._counting_failures(images):
                inferred = await together(
                    self._infer_one(engine, each, reservation, decode_slots, deadline, left)
                    for each, reservation in zip(encoded, reservations, strict=True)
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
                    self._metrics.images.labels("ok").inc()
                else:
                    self._metrics.images.labels(outcome.code).inc()
            return respond(outcomes)

        if not draws:
            return await on_pool(self.response_threads, finish_all)

        def draw_all(memory: MemoryReservation) -> Result:
            for file, outcome in zip(encoded, inferred, strict=True):
                if isinstance(outcome, Inferred):
                    memory.require(image_bytes(file, read_header(file)))
            return finish_all()

        return await self.decoding.run(draw_all, left)

    async def infer(
        self, engine: LoadedModel, canvases: NDArray[np.uint8], deadline: float
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
        async with self._queue.reserve(engine, images) as reservations:

            def write_all() -> None:
                for reservation, pixels in zip(reservations, canvases, strict=True):
                    with reservation.canvas(pixels.shape[:2]) as canvas:
                        canvas[:] = pixels

            with self._counting_failures(images):
                await self.on_thread(write_all)
                answers = await together(
                    reservation.submit(deadline) for reservation in reservations
                )
        stages = [{"queue": each.queue_s, "inference": each.inference_s} for each in answers]
        for stage_s in stages:
            self._observe(stage_s)
        self._metrics.images.labels("ok").inc(images)
        longest_s = {stage: max(each[stage] for each in stages) for stage in stages[0]}
        return np.stack([each.result for each in answers]), longest_s

    async def on_thread(
        self, work: Callable[Params, Result], *args: Params.args, **kwargs: Params.kwargs
    ) -> Result:
        """Runs the work of an answer on a thread, with the log context of the request."""
        return await on_pool(self.response_threads, work, *args, **kwargs)

    async def _infer_one(
        self,
        engine: LoadedModel,
        encoded: bytes,
        reservation: ImageReservation,
        decode_slots: asyncio.Semaphore,
        deadline: float,
        left: threading.Event | None,
    ) -> Inferred | BadInput:
        try:
            async with decode_slots:
                prepared, stage_s = await self._prepare(engine, encoded, reservation, left)
        except BadInput as error:
            reservation.release()
            return error
        answer = await reservation.submit(deadline)
        stage_s["queue"] = answer.queue_s
        stage_s["inference"] = answer.inference_s
        return Inferred(prepared, answer.result, stage_s)

    def _refuse_pixels(self, encoded: Sequence[bytes]) -> None:
        """Raises `TooLarge` where decoding all images would make more pixels than allowed."""
        pixels = sum(decoded_pixels(file, self._settings.max_image_pixels) for file in encoded)
        if pixels > self._settings.max_request_pixels:
            raise TooLarge(
                f"the {len(encoded)} images have {pixels} pixels together; max_request_pixels is "
                f"{self._settings.max_request_pixels}",
                code="too_many_request_pixels",
            )

    @contextmanager
    def _counting_failures(self, images: int) -> Iterator[None]:
        """Counts a request's images as failed where one of them can't be inferred."""
        try:
            yield
        except ServerError as error:
            self._metrics.images.labels(error.code).inc(images)
            raise

    def _observe(self, stage_s: dict[str, float]) -> None:
        for stage, seconds in stage_s.items():
            self._metrics.stage_seconds[stage].observe(seconds)

    async def _prepare(
        self,
        engine: LoadedModel,
        encoded: bytes,
        reservation: ImageReservation,
        left: threading.Event | None,
    ) -> tuple[Prepared, dict[str, float]]:
        """Decodes an image into its reservation; what is left of it has no pixels."""

        def prepare(memory: MemoryReservation) -> tuple[Prepared, dict[str, float]]:
            prepared, stage_s = prepare_encoded(
                encoded,
                engine.artifact.metadata,
                max_pixels=self._settings.max_image_pixels,
                dct_scaling=self._settings.jpeg_dct_scaling,
                require=memory.require,
                open_canvas=reservation.canvas,
            )
            return replace(prepared, canvas=NO_PIXELS), stage_s

        return await self.decoding.run(prepare, left)
