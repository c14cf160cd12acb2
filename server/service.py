"""The life of a detection service: start, accept, reload, drain, end. Knows no web framework."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Literal

from server.byte_budget import ByteBudget
from server.decode_memory import LEAST_BYTES, decoding_share
from server.engine import Engine
from server.errors import (
    DeadlineExceeded,
    DeploymentError,
    Draining,
    NotReady,
    ReloadFailed,
)
from server.letterbox import full_size
from server.loading import Loader, Loading
from server.logs import get_logger
from server.memory import resident_bytes
from server.pipeline import Pipeline
from server.settings import Settings

State = Literal["starting", "ready", "draining", "failed"]
# When the service has failed, requests under way are told so, then the process ends.
FAILED_GRACE_S = 1.0

logger = get_logger(__name__)


class Service:
    """One model at a time behind a `Pipeline`, from start to end.

    Args:
        settings: limits and times.
        loader: loads the model; waits here until its files are read.
        on_failure: called once when the service can't go on; `failure` then says why.
        rejection_reasons: error codes for the metrics.
        uploads: what requests' bodies have in memory.
        memory_bytes: what the process may use in all.

    Raises:
        ArtifactInvalid: the model is not one that this server can serve.
    """

    def __init__(
        self,
        settings: Settings,
        loader: Loader,
        *,
        on_failure: Callable[[], None],
        rejection_reasons: Sequence[str],
        uploads: ByteBudget,
        memory_bytes: int,
    ) -> None:
        self.settings = settings
        assert loader.first is not None
        self.model_name = loader.first.artifacts.result()[0].metadata.name
        self.state: State = "starting"
        self.failure: BaseException | None = None
        self.engine: Engine | None = None
        self.pipeline = Pipeline(
            settings,
            rejection_reasons=rejection_reasons,
            uploads=uploads,
            state=lambda: self.status,
        )
        self.metrics = self.pipeline.metrics
        self._loader = loader
        self.uploads = uploads
        self._memory_bytes = memory_bytes
        self._on_failure = on_failure
        self._limits: set[asyncio.Timeout] = set()
        self._reloading = asyncio.Lock()

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
            self.pipeline.shut_down()

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
        self.pipeline.batcher.refuse_when_full()
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
        if self.state == "ready" and self.pipeline.stuck_s() is not None:
            return "stuck"
        return self.state

    @property
    def ending(self) -> bool:
        """Whether the process ends: it drains, or the service has failed."""
        return self.state in ("draining", "failed")

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
        stuck_s = self.pipeline.stuck_s()
        if stuck_s is not None:
            raise NotReady(
                f"a model call has been running for {stuck_s:.0f} s; "
                f"stuck_after_s is {self.settings.stuck_after_s:g}"
            )

    def begin_drain(self) -> None:
        """Takes no new requests; those accepted have `drain_timeout_s` to finish."""
        if self.ending:
            return
        self.state = "draining"
        self._end_requests_in(self.settings.drain_timeout_s)

    def _end_requests_in(self, seconds: float) -> None:
        end = asyncio.get_running_loop().time() + seconds
        for limit in self._limits:
            if not limit.expired():
                limit.reschedule(min(end, limit.when() or end))

    async def reload(self, read_first: Callable[[], None] = lambda: None) -> Engine:
        """Reads, checks, loads and warms the model files anew, then serves them.

        Requests that began before are finished by the model that they began with. One reload
        follows the other.

        Args:
            read_first: reads what else is configured; raises `DeploymentError` where that can't be.

        Raises:
            NotReady, Draining: requests are not taken now.
            ReloadFailed: the files can't be served; the old model goes on serving.
        """
        async with self._reloading:
            self.refuse_unless_ready()
            try:
                read_first()
                loading = self._loader.begin()
                engine = await asyncio.wrap_future(loading.engine)
            except DeploymentError as error:
                logger.error("reload_failed", reason=str(error))
                self.metrics.reloads.labels("failed").inc()
                raise ReloadFailed(f"{error}; the model of before goes on serving") from error
            self.refuse_unless_ready()  # a signal may have come meanwhile
            self._serve_with(engine, "reloaded", loading)
            self._loader.return_memory()
            self.metrics.reloads.labels("ok").inc()
            return engine

    async def _live(self) -> None:
        try:
            await self._start()
            await self.pipeline.batcher.serve()
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
        loading, self._loader.first = self._loader.first, None
        assert loading is not None
        engine = await asyncio.wrap_future(loading.engine)
        self._share_memory(engine)
        self._serve_with(engine, "ready", loading)
        if self.state == "starting":  # not when a signal came meanwhile
            self.state = "ready"

    def _share_memory(self, engine: Engine) -> None:
        """Leaves to decoding what nothing else needs; the model is warm, and nothing else runs.

        Not again at a reload: under load, what is resident is also pictures and the model of
        before. The part that is spare had to hold both models, so it holds what one is larger.
        """
        height, width = full_size(engine.artifact.metadata.buckets)
        parts = {
            "resident_bytes": resident_bytes(),
            "canvas_bytes": 3 * height * width * self.settings.max_queue_images,
            "upload_bytes": self.uploads.max_bytes,
        }
        decode_bytes = decoding_share(self._memory_bytes, **parts)
        self.pipeline.decoding.limit(decode_bytes)
        logger.info("memory", limit_bytes=self._memory_bytes, **parts, decode_bytes=decode_bytes)
        if decode_bytes == LEAST_BYTES:
            logger.warning(
                "memory is short: more is needed, or less with a smaller max_queue_images or "
                "max_upload_bytes; the process may be killed under load"
            )

    def _serve_with(self, engine: Engine, event: str, loading: Loading) -> None:
        """Gives an engine to new requests; the one of before goes with its last request."""
        self.engine = engine
        self.pipeline.arrange_for(engine)
        model = engine.artifact.metadata
        running = {
            "name": model.name,
            "version": engine.artifact.version,
            "precision": model.precision,
            "provider": engine.provider,
            "device": engine.device,
        }
        self.metrics.set_model(**running)
        self.metrics.cpu_fallback.set(engine.cpu_fallback is not None)
        logger.info(
            event,
            requested_device=self.settings.device,
            load_s=round(time.perf_counter() - loading.started, 3),
            reason=engine.reason,
            cpu_fallback=engine.cpu_fallback,
            lanes=engine.lanes,
            max_batch_size=engine.max_batch_size,
            **running,
        )
        if model.certificate.verdict == "loss_accepted":
            logger.warning("this model was not shown to keep its accuracy (--accept-loss)")
