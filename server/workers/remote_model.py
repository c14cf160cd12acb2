"""The model of another process, as a worker sees it: its state, its reloads, the metrics of all."""

import asyncio
import itertools
import socket
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import cast

from server.errors import (
    DeploymentError,
    Draining,
    InferenceFailed,
    NotReady,
    ReloadFailed,
    ServerError,
)
from server.http.auth import Keys
from server.observability.metrics import Metrics
from server.observability.metrics_merge import exposition, merged, snapshot, worker_part
from server.serving.interface import State, refuse_unless_alive
from server.settings import Settings
from server.workers.messages import (
    Ack,
    Channel,
    Message,
    MetricsRequest,
    MetricsResponse,
    MetricsSnapshot,
    ModelReleased,
    Ping,
    Ready,
    Reload,
    Reloaded,
    SnapshotRequest,
    StateUpdate,
)
from server.workers.remote_engine import RemoteEngine, read_description
from server.workers.remote_queue import RemoteQueue
from server.workers.shared_memory import SharedFile

# Longer than the engine process waits for the workers, shorter than the 10 s of a Prometheus
# scrape.
METRICS_TIMEOUT_S = 5.0
LOOK_S = 1.0  # between two looks at an engine process that reloads
_RELOAD_ERRORS = {each.code: each for each in (ReloadFailed, NotReady, Draining)}


class RemoteModel:
    """A `server.serving.interface.Model` in the engine process.

    Args:
        settings: of this worker.
        name: the model's, until it is loaded.
        control: this end of the socket to the engine process.
        rest: what was read from it already.
        shared: the memory that both have.
        metrics: of this process.
        keys: taken over as the engine process has them.
        lost: called when the engine process is gone.

    Attributes:
        queue, state, failure, engine, changed: as `server.serving.interface.Model` has them.
    """

    def __init__(
        self,
        settings: Settings,
        name: str,
        *,
        control: socket.socket,
        rest: bytes,
        shared: SharedFile,
        metrics: Metrics,
        keys: Keys,
        lost: Callable[[], None],
    ) -> None:
        self.name = name
        self.state: State = "starting"
        self.failure: BaseException | None = None
        self.engine: RemoteEngine | None = None
        self.queue_bytes = 0
        self.changed: Callable[[], None] = lambda: None
        self._settings = settings
        self._control = control
        self._metrics = metrics
        self._keys = keys
        self._channel = Channel(self._handle, lost=lost, rest=rest)
        self.queue = RemoteQueue(shared, self._channel.send)
        self._requests = itertools.count()
        self._pending: dict[int, asyncio.Future[Reloaded | MetricsResponse]] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listens to the engine process; without it there is nothing to live for."""
        loop = asyncio.get_running_loop()
        self._loop = loop
        await loop.create_unix_connection(lambda: self._channel, sock=self._control)
        yield

    def send_ready(self) -> None:
        """Says that connections are taken now."""
        self._channel.send(Ready())

    def begin_drain(self) -> None:
        """Not this process' to decide: the engine process tells when it drains."""

    async def reload(self, read_keys: Callable[[], None] = lambda: None) -> None:
        """Reloads the model and the keys of all processes; see `server.serving.interface.Model`.

        Raises:
            NotReady: also when the engine process is silent; when it wakes, it may reload all the
                same.
        """
        asking = asyncio.create_task(self._ask(Reload))
        try:
            # A model may take minutes to load, so the limit is the engine process' silence.
            while not (await asyncio.wait([asking], timeout=LOOK_S))[0]:
                refuse_unless_alive(self, self._settings)
        finally:
            asking.cancel()
        answer = await asking
        assert isinstance(answer, Reloaded)
        if answer.code is not None:
            raise _RELOAD_ERRORS.get(answer.code, ServerError)(answer.reason)

    async def collect_metrics(self) -> Callable[[], bytes]:
        """Asks for the metrics of all processes.

        Where they can't be had there are none, and not this process' own: counters would fall to
        its share and rise again, which Prometheus takes for requests that never were.

        Raises:
            NotReady: the engine process has not answered for `METRICS_TIMEOUT_S`.
        """
        try:
            async with asyncio.timeout(METRICS_TIMEOUT_S):
                answer = await self._ask(MetricsRequest)
        except TimeoutError:
            raise NotReady(
                "the engine process, which has the metrics of all, has not answered for "
                f"{METRICS_TIMEOUT_S:g} s"
            ) from None
        assert isinstance(answer, MetricsResponse)
        if not answer.own:
            raise ServerError("the metrics can't be had; the log says why")
        return lambda: exposition(merged(answer.own, answer.workers))

    async def _ask(
        self, question: type[Reload] | type[MetricsRequest]
    ) -> Reloaded | MetricsResponse:
        request = next(self._requests)
        response: asyncio.Future[Reloaded | MetricsResponse] = self._loop.create_future()
        self._pending[request] = response
        self._channel.send(question(request))
        try:
            return await response
        finally:
            self._pending.pop(request, None)

    def _handle(self, message: Message) -> None:
        match message:
            case StateUpdate():
                self._take_over(message)
                self._channel.send(Ack(message.number))
            case Ping():
                self._channel.send(Ack(message.number))
            case Reloaded() | MetricsResponse():
                response = self._pending.get(message.request)
                if response is not None and not response.done():  # else nobody waits any more
                    response.set_result(message)
            case SnapshotRequest():
                own = worker_part(snapshot(self._metrics.registry))
                self._channel.send(MetricsSnapshot(message.number, own))
            case _:
                self.queue.handle(message)

    def _take_over(self, update: StateUpdate) -> None:
        self._keys.take_over(bytes.fromhex(each) for each in update.keys)
        before = self.state, self.engine
        self.queue_bytes = update.others_bytes
        if update.engine is not None:
            known = self.engine.generation if self.engine else None
            if update.engine["generation"] != known:
                self.engine = read_description(update.engine)
                self.name = self.engine.artifact.metadata.name
                weakref.finalize(
                    self.engine, self._model_released, update.engine["generation"]
                ).atexit = False
        if update.state == "failed" and self.failure is None:
            by_deployer = update.deployment is not None
            reason = update.deployment or "the engine process failed"
            self.failure = (DeploymentError if by_deployer else InferenceFailed)(reason)
        self.state = cast(State, update.state)
        if (self.state, self.engine) != before:
            self.changed()

    def _model_released(self, generation: int) -> None:
        # The last request may have ended on any thread.
        self._loop.call_soon_threadsafe(partial(self._channel.send, ModelReleased(generation)))
