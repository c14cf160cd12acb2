"""The life of a model in this process: it is loaded, served, loaded anew, and ended.

Loading has a thread of its own: at the start, beside the imports, and at each reload.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from server.errors import DeploymentError, ReloadFailed, Unavailable
from server.host import return_freed_memory
from server.inference.artifact import Artifact, refuse_if_replaced
from server.inference.engine import Engine
from server.inference.repository import load_model
from server.observability.logs import get_logger
from server.observability.metrics import Metrics
from server.serving.interface import State, refuse_unless_ready
from server.serving.model_runner import ModelRunner
from server.serving.threads import MODEL_NICENESS, nice_pool
from server.settings import Settings
from server.vision import nms
from server.vision.letterbox import full_size

logger = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Loading:
    """A model that is being loaded.

    Attributes:
        artifacts: the files, read and checked; fails with `ArtifactInvalid`.
        engine: the best of them, open and warm; fails as that did, as `Engine.open` and
            `Engine.warm_up` do, or with `ArtifactInvalid` where the file was replaced meanwhile.
        started: when it began, in seconds of `time.perf_counter`.
    """

    artifacts: Future[tuple[Artifact, ...]]
    engine: Future[Engine]
    started: float = field(default_factory=time.perf_counter)


class Loader:
    """Loads what the settings name: at once, and as often as it is told; one after the other.

    Args:
        settings: the model, and how it runs.
        open_engine: loads the best of some files; ONNX Runtime by default.

    Attributes:
        first: the loading that begins at once; None when it was taken, as it holds its engine.
    """

    def __init__(
        self,
        settings: Settings,
        open_engine: Callable[[Sequence[Artifact], Settings], Engine] | None = None,
    ) -> None:
        self._settings = settings
        self._open_engine = open_engine or open_onnx_engine
        self._thread = nice_pool(1, "load", MODEL_NICENESS)
        self.first: Loading | None = self.begin()

    def begin(self) -> Loading:
        """Reads, checks, opens and warms the model files as they are now."""
        artifacts = self._thread.submit(load_model, self._settings.model)
        return Loading(artifacts, self._thread.submit(self._open_warm, artifacts))

    def return_memory(self) -> None:
        """Gives what an engine left back to the system, after what is being loaded."""
        self._thread.submit(return_freed_memory)

    def shut_down(self) -> None:
        """Ends the thread, without waiting for what it does."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _open_warm(self, artifacts: Future[tuple[Artifact, ...]]) -> Engine:
        read = artifacts.result()  # it ran before, on this thread
        nms.load()  # not at the first request
        return_freed_memory()
        engine = self._open_engine(read, self._settings)
        engine.warm_up()
        refuse_if_replaced(engine.artifact)
        return engine


def open_onnx_engine(
    artifacts: Sequence[Artifact], settings: Settings, *, cpus: int | None = None
) -> Engine:
    """Loads the best of some files into ONNX Runtime; `cpus` as `Engine.open` takes them."""
    return Engine.open(
        artifacts,
        device=settings.device,
        precision=settings.precision,
        intra_op_threads=settings.intra_op_threads,
        max_batch_size=settings.max_batch_size,
        cpus=cpus,
        cuda_graphs=settings.cuda_graphs,
        tensorrt_cache=settings.tensorrt_cache,
    )


class LocalModel:
    """One model at a time behind the queue, from start to end; a `server.serving.interface.Model`.

    Args:
        settings: limits and times.
        loader: loads the model; waits here until its files are read.
        metrics: of this process.

    Attributes:
        queue: before the model.
        state, failure, engine, changed: as `server.serving.interface.Model` has them.
        prepare: called before an engine serves; where it raises, the engine does not.

    Raises:
        ArtifactInvalid: the model is not one that this server can serve.
    """

    def __init__(self, settings: Settings, loader: Loader, metrics: Metrics) -> None:
        assert loader.first is not None
        self.name = loader.first.artifacts.result()[0].metadata.name
        self.queue = ModelRunner(settings, metrics)
        self.state: State = "starting"
        self.failure: BaseException | None = None
        self.engine: Engine | None = None
        self.changed: Callable[[], None] = lambda: None
        self.prepare: Callable[[Engine], None] = lambda _: None
        self._settings = settings
        self._metrics = metrics
        self._loader = loader
        self._reloading = asyncio.Lock()

    @property
    def queue_bytes(self) -> int:
        """Of all canvases that may wait."""
        assert self.engine is not None
        height, width = full_size(self.engine.artifact.metadata.buckets)
        return 3 * height * width * self._settings.max_queue_images

    @property
    def status(self) -> str:
        """The state; "hung" where an inference does not return."""
        hung = self.queue.status().hung_reason(self._settings.inference_watchdog_s)
        return "hung" if self.state == "ready" and hung else self.state

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serves as soon as the model is loaded; ends all threads on exit."""
        serving = asyncio.create_task(self._live())
        try:
            yield
        finally:
            serving.cancel()
            await asyncio.wait([serving])
            self._loader.shut_down()
            self.queue.shut_down()

    def begin_drain(self) -> None:
        """Takes no new requests."""
        if self.state not in ("draining", "failed"):
            self.state = "draining"
            self.changed()

    def fail(self, error: BaseException) -> None:
        """Ends the service for good."""
        if self.state == "failed":
            return
        self.state = "failed"
        self.failure = error
        # A deployment error speaks for itself; anything else needs its traceback.
        expected = isinstance(error, DeploymentError)
        logger.critical("service_failed", reason=str(error), exc_info=None if expected else error)
        self.changed()

    async def reload(self, read_keys: Callable[[], None] = lambda: None) -> None:
        """Reads, checks, loads and warms the model files anew, then serves them.

        Requests that began before are finished by the model that they began with. One reload
        follows the other.

        Args:
            read_keys: reads what else is configured, on a thread; raises `DeploymentError` where
                that can't be.

        Raises:
            NotReady, Draining: requests are not taken now.
            ReloadFailed: the files can't be served, or something else went wrong, which the log
                has; the old model goes on serving.
        """
        async with self._reloading:
            refuse_unless_ready(self, self._settings)
            try:
                await asyncio.to_thread(read_keys)  # its disk may be slow, or a network's
                refuse_unless_ready(self, self._settings)
                loading = self._loader.begin()
                engine = await asyncio.wrap_future(loading.engine)
                refuse_unless_ready(self, self._settings)  # a signal may have come meanwhile
                self.prepare(engine)
            except Unavailable:
                raise
            except Exception as error:  # whatever it is, nothing has been replaced yet
                raise self._reload_failed(error) from error
            self._serve_with(engine, "reloaded", loading)
            self._loader.return_memory()
            self._metrics.reloads.labels("ok").inc()
            self.changed()

    async def collect_metrics(self) -> Callable[[], bytes]:
        """What makes the text of all metrics, on a thread."""
        return self._metrics.exposition

    def _reload_failed(self, error: Exception) -> ReloadFailed:
        # A deployment error speaks for itself; anything else needs its traceback.
        expected = isinstance(error, DeploymentError)
        logger.error("reload_failed", reason=str(error), exc_info=None if expected else error)
        self._metrics.reloads.labels("failed").inc()
        # What it is of the system, such as a full disk, is the deployer's to know.
        tellable = expected or isinstance(error, OSError)
        reason = str(error) if tellable else "the server failed; its log has the reason"
        return ReloadFailed(f"{reason}; the model of before goes on serving")

    async def _live(self) -> None:
        try:
            await self._start()
            await self.queue.batcher.serve()
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # the loop itself: nothing can be served any more
            self.fail(error)

    async def _start(self) -> None:
        loading, self._loader.first = self._loader.first, None
        assert loading is not None
        engine = await asyncio.wrap_future(loading.engine)
        self.prepare(engine)
        self._serve_with(engine, "ready", loading)
        if self.state == "starting":  # not when a signal came meanwhile
            self.state = "ready"
        self.changed()

    def _serve_with(self, engine: Engine, event: str, loading: Loading) -> None:
        """Gives an engine to new requests; the one of before goes with its last request."""
        self.engine = engine
        self.queue.resize_for(engine)
        model = engine.artifact.metadata
        running = {
            "name": model.name,
            "version": engine.artifact.version,
            "precision": model.precision,
            "provider": engine.provider,
            "device": engine.device,
        }
        self._metrics.set_model(**running)
        self._metrics.cpu_fallback.set(engine.cpu_fallback is not None)
        logger.info(
            event,
            requested_device=self._settings.device,
            load_s=round(time.perf_counter() - loading.started, 3),
            reason=engine.reason,
            cpu_fallback=engine.cpu_fallback,
            instances=engine.instances,
            max_batch_size=engine.max_batch_size,
            **running,
        )
        if model.certificate.verdict == "loss_accepted":
            logger.warning("this model was not shown to keep its accuracy (--accept-loss)")
