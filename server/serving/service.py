"""The life of a detection service: start, accept, reload, drain, end. Knows no web framework."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Literal

from server.errors import DeadlineExceeded, Draining, NotReady
from server.host import resident_bytes
from server.observability.logs import get_logger
from server.observability.metrics import Metrics, ServerStatus
from server.serving.body_budget import ByteBudget
from server.serving.decode_pool import LEAST_BYTES, decoding_share
from server.serving.interface import (
    LoadedModel,
    Model,
    State,
    refuse_unless_alive,
    refuse_unless_ready,
    server_status,
)
from server.serving.pipeline import Pipeline
from server.settings import Settings

# When the service has failed, requests under way are told so, then the process ends.
FAILED_GRACE_S = 1.0

logger = get_logger(__name__)


class Service:
    """Requests before a model, from start to end.

    Args:
        settings: limits and times.
        model: answers, in this process or in another.
        metrics: of this process.
        on_failure: called once when the service can't go on; `failure` then says why.
        body_budget: what requests' bodies have in memory.
        memory_bytes: what the process may use in all.
    """

    def __init__(
        self,
        settings: Settings,
        model: Model,
        metrics: Metrics,
        *,
        on_failure: Callable[[], None],
        body_budget: ByteBudget,
        memory_bytes: int,
    ) -> None:
        self.settings = settings
        self.model = model
        self.metrics = metrics
        self.pipeline = Pipeline(settings, model.queue, metrics)
        self.body_budget = body_budget
        self._memory_bytes = memory_bytes
        self._memory_shared = False
        self._on_failure = on_failure
        self._limits: set[asyncio.Timeout] = set()
        model.changed = self._model_changed
        metrics.observe(self._server_status)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serves as soon as the model is loaded; ends all threads on exit."""
        try:
            async with self.model.running():
                yield
        finally:
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
        self.refuse_unless_accepting()
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
            if self.model.state == "draining":
                raise Draining("the server shut down before the answer was ready") from None
            if self.model.state == "failed":
                raise NotReady("the model has stopped") from None
            raise DeadlineExceeded(f"the request took over {timeout_s:g} s") from None
        finally:
            self._limits.discard(limit)

    def current(self) -> LoadedModel:
        """The model that serves now. A request keeps it to its end, whatever is loaded meanwhile.

        Raises:
            NotReady: none is loaded yet.
        """
        if self.model.engine is None:
            raise NotReady("the model is being loaded")
        return self.model.engine

    @property
    def status(self) -> State | Literal["hung"]:
        """The state; "hung" where inferences or decoding do not end, and no request is taken."""
        hung = self.model.queue.status().hung_reason(self.settings.inference_watchdog_s)
        if self.model.state == "ready" and (hung or self._decoding_hangs()):
            return "hung"
        return self.model.state

    @property
    def ending(self) -> bool:
        """Whether the process ends: it drains, or the service has failed."""
        return self.model.state in ("draining", "failed")

    def refuse_unless_accepting(self) -> None:
        """Raises `NotReady`, `Draining` or `QueueFull` unless a request would be accepted now."""
        self.refuse_unless_ready()
        self.model.queue.status().refuse_when_full(self.settings.max_queue_images)

    def refuse_unless_ready(self) -> None:
        """Raises `NotReady` or `Draining` unless requests are taken."""
        refuse_unless_ready(self.model, self.settings)
        if self._decoding_hangs():
            raise NotReady(
                "every decode thread has been decoding one image for "
                f"{self.pipeline.decoding.hung_s():.0f} s; request_timeout_s is "
                f"{self.settings.request_timeout_s:g}"
            )

    def _decoding_hangs(self) -> bool:
        """Whether a request that comes now would wait for images that nobody waits for any more."""
        return self.pipeline.decoding.hung_s() > self.settings.request_timeout_s

    def refuse_unless_alive(self) -> None:
        """Raises `NotReady` when only a new process can help: the model failed, or is hung."""
        refuse_unless_alive(self.model, self.settings)

    async def exposition(self) -> bytes:
        """The metrics of the whole server in the Prometheus text format."""
        return await self.pipeline.on_thread(await self.model.collect_metrics())

    def _server_status(self) -> ServerStatus:
        queue = self.model.queue.status()
        return server_status(self.status, queue, self.settings, self.body_budget)

    def _model_changed(self) -> None:
        state = self.model.state
        if state == "draining":
            self._end_requests_in(self.settings.drain_timeout_s)
        elif state == "failed":
            self._end_requests_in(FAILED_GRACE_S)
            self._on_failure()
        elif state == "ready" and not self._memory_shared:
            self._memory_shared = True
            self._share_memory()

    def _end_requests_in(self, seconds: float) -> None:
        end = asyncio.get_running_loop().time() + seconds
        for limit in self._limits:
            if not limit.expired():
                limit.reschedule(min(end, limit.when() or end))

    def _share_memory(self) -> None:
        """Leaves to decoding what nothing else needs; the model is warm, and nothing else runs.

        Not again at a reload: under load, what is resident is also images and the model of
        before. The part that is spare had to hold both models, so it holds what one is larger.
        """
        parts = {
            "resident_bytes": resident_bytes(),
            "canvas_bytes": self.model.queue_bytes,
            "inflight_body_bytes": self.body_budget.max_bytes,
        }
        decode_bytes = decoding_share(self._memory_bytes, **parts)
        self.pipeline.decoding.limit(decode_bytes)
        logger.info("memory", limit_bytes=self._memory_bytes, **parts, decode_bytes=decode_bytes)
        if decode_bytes == LEAST_BYTES:
            logger.warning(
                "memory is short: more is needed, or less with a smaller max_queue_images or "
                "max_inflight_body_bytes; the process may be killed under load"
            )
