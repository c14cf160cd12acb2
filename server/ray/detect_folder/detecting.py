"""Detections of files by one engine, through the server's own pipeline; knows nothing of Ray."""

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import cv2
import numpy as np

from server.errors import BadInput, InferenceFailed
from server.host import resident_bytes
from server.inference.detector import ImageDetections
from server.inference.engine import Engine
from server.observability.metrics import Metrics
from server.ray.detect_folder.folders import Folder
from server.ray.detect_folder.result_rows import ImageError
from server.serving.decode_pool import body_share, decoding_share
from server.serving.model_runner import ModelRunner
from server.serving.pipeline import Found, Pipeline
from server.serving.threads import on_pool, together
from server.settings import Settings
from server.vision import nms
from server.vision.decode import quiet_codecs
from server.vision.letterbox import full_size
from server.vision.nms import DetectParameters

Result = TypeVar("Result")
Outcome = ImageDetections | ImageError

# Files that are read at the same time: an object store answers late, but many at once.
READERS = 16
# How often it is looked whether an inference still runs that should have returned long ago.
HUNG_LOOKS_S = 5.0


class EngineLost(Exception):
    """The model can't run any more in this process; nothing that it was asked for is known."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one image may cost.

    Attributes:
        bytes: of its file.
        pixels: width × height, known before it is decoded.
        dct_scaling: large JPEGs are decoded at reduced scale, as the server does.
    """

    bytes: int
    pixels: int
    dct_scaling: bool


class Detecting:
    """An engine with the threads that read, decode and finish images for it.

    Any number of threads may call it at the same time: their images share one queue. They are
    bounded by a window: so many images are in memory, and no more.

    Args:
        engine: warmed up, or it is at the first image.
        folder: where the images are.
        parameters: of the postprocessing.
        limits: of one image.
        cpus: that decoding may take, >= 1.
        memory_bytes: that the process may use; None: as much as images need. Of what else is in
            memory, the engine has to be there already.
    """

    def __init__(
        self,
        engine: Engine,
        folder: Folder,
        parameters: DetectParameters,
        limits: Limits,
        *,
        cpus: int,
        memory_bytes: int | None = None,
    ) -> None:
        cv2.setNumThreads(1)  # images are decoded side by side, one thread each
        quiet_codecs()
        nms.load()
        self._engine = engine
        self._folder = folder
        self._parameters = parameters
        self._limits = limits
        self._window = 2 * engine.instances * engine.max_batch_size + 2 * cpus + READERS
        # model_validate reads no environment.
        settings = Settings.model_validate(
            {
                "decode_threads": cpus,
                "max_image_pixels": limits.pixels,
                "max_request_pixels": limits.pixels,  # a request has one image here
                "jpeg_dct_scaling": limits.dct_scaling,
                "max_queue_images": max(
                    self._window, Settings.model_fields["max_queue_images"].default
                ),
            }
        )
        metrics = Metrics()
        self._inference_watchdog_s = settings.inference_watchdog_s
        self._calls = ModelRunner(settings, metrics)
        self._calls.resize_for(engine)
        self._pipeline = Pipeline(settings, self._calls, metrics)
        if memory_bytes is not None:
            self._pipeline.decoding.limit(self._decoding_bytes(memory_bytes))
        self._reading = ThreadPoolExecutor(READERS, "read")
        self._places = asyncio.Semaphore(self._window)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="loop", daemon=True)
        self._thread.start()
        self._serving = self._start(self._calls.batcher.serve())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends all threads."""
        self._serving.cancel()
        wait([self._serving])
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._pipeline.shut_down()
        self._calls.shut_down()
        self._reading.shutdown(wait=False, cancel_futures=True)

    def detect(self, paths: Sequence[bytes]) -> list[Outcome]:
        """Files to detections, in their order; what is wrong with one is its outcome.

        Raises:
            EngineLost: the model has stopped, or does not return.
            OSError: the folder is not there any more.
        """
        detecting = self._start(self._detect_all(paths))
        while True:
            try:
                return detecting.result(HUNG_LOOKS_S)
            except TimeoutError:
                if detecting.done():
                    raise
                hung_reason = self._calls.status().hung_reason(self._inference_watchdog_s)
                if hung_reason is not None:
                    raise EngineLost(hung_reason) from None

    def _decoding_bytes(self, memory_bytes: int) -> int:
        height, width = full_size(self._engine.artifact.metadata.buckets)
        return decoding_share(
            memory_bytes,
            resident_bytes=resident_bytes(),
            canvas_bytes=3 * height * width * self._window,
            inflight_body_bytes=body_share(memory_bytes),
        )

    def _start(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _detect_all(self, paths: Sequence[bytes]) -> list[Outcome]:
        outcomes: dict[int, Outcome] = {}
        indices = iter(range(len(paths)))

        async def take_turns() -> None:
            for i in indices:
                async with self._places:
                    outcomes[i] = await self._detect(paths[i])

        await together(take_turns() for _ in range(min(len(paths), self._window)))
        return [outcomes[i] for i in range(len(paths))]

    async def _detect(self, path: bytes) -> Outcome:
        try:
            encoded = await on_pool(self._reading, self._folder.read, path, self._limits.bytes)
        except BadInput as error:
            return ImageError(error.code, str(error))
        except OSError as error:
            # All images of a disk that is gone must not pass for bad ones.
            if not await on_pool(self._reading, self._folder.exists):
                raise
            return ImageError("unreadable_file", error.strerror or str(error))
        for attempts_left in (1, 0):
            try:
                return await self._pipeline.detect(
                    self._engine, [encoded], self._parameters, float("inf"), _only_one
                )
            except BadInput as error:
                return ImageError(error.code, str(error))
            except InferenceFailed as error:
                if not attempts_left:
                    # A lost engine fails every image at once: the second try met its end.
                    if self._serving.done():
                        raise EngineLost(str(self._serving.exception())) from error
                    return ImageError(error.code, str(error))
        raise AssertionError("the loop returns or raises")


def _only_one(outcomes: list[Found | BadInput]) -> Outcome:
    """The answer to a request of one image."""
    (outcome,) = outcomes
    if isinstance(outcome, BadInput):
        return ImageError(outcome.code, str(outcome))
    found = outcome.detections
    if not np.isfinite(found.detections.boxes).all():  # as of a model that overflowed
        return ImageError(InferenceFailed.code, "the model gave a box that is no number")
    return found
