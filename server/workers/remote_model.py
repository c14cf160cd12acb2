"""The model of another process, as a front sees it: its state, its reloads, the metrics of all."""

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
from server.observability.metrics_merge import exposition, front_part, merged, snapshot
from server.serving.interface import State
from server.settings import Settings
from server.workers.messages import (
    Dropped,
    Heard,
    Line,
    Measure,
    Measured,
    Message,
    Ping,
    Reload,
    Reloaded,
    Sample,
    Sampled,
    Told,
    Up,
)
from server.workers.remote_engine import RemoteEngine, read_description
from server.workers.remote_queue import RemoteQueue
from server.workers.shared_memory import SharedFile

# Longer than the model process waits for the fronts, shorter than the 10 s of a Prometheus scrape.
MEASURED_S = 5.0
_RELOAD_ERRORS = {each.code: each for each in (ReloadFailed, NotReady, Draining)}


class RemoteModel:
    """A `server.serving.interface.Model` in the model process.

    Args:
        settings: of this front.
        name: the model's, until it is loaded.
        control: this end of the socket to the model process.
        rest: what was read from it already.
        shared: the memory that both have.
        metrics: of this process.
        keys: taken over as the model process has them.
        lost: called when the model process is gone.

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
        self._control = control
        self._metrics = metrics
        self._keys = keys
        self._line = Line(self._handle, lost=lost, rest=rest)
        self.queue = RemoteQueue(settings, shared, self._line.send)
        self._requests = itertools.count()
        self._asked: dict[int, asyncio.Future[Reloaded | Measured]] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listens to the model process; without it there is nothing to live for."""
        loop = asyncio.get_running_loop()
        self._loop = loop
        await loop.create_unix_connection(lambda: self._line, sock=self._control)
        yield

    def tell_up(self) -> None:
        """Says that connections are taken now."""
        self._line.send(Up())

    def begin_drain(self) -> None:
        """Not this process' to decide: the model process tells when it drains."""

    async def reload(self, read_keys: Callable[[], None] = lambda: None) -> None:
        """Reloads the model and the keys of all processes; see `server.serving.interface.Model`."""
        answer = await self._ask(Reload)
        assert isinstance(answer, Reloaded)
        if answer.code is not None:
            raise _RELOAD_ERRORS.get(answer.code, ServerError)(answer.reason)

    async def measure(self) -> Callable[[], bytes]:
        """Asks for the metrics of all processes.

        Where they can't be had there are none, and not this process' own: counters would fall to
        its share and rise again, which Prometheus takes for requests that never were.

        Raises:
            NotReady: the model process has not answered for `MEASURED_S`.
        """
        try:
            async with asyncio.timeout(MEASURED_S):
                answer = await self._ask(Measure)
        except TimeoutError:
            raise NotReady(
                "the model process, which has the metrics of all, has not answered for "
                f"{MEASURED_S:g} s"
            ) from None
        assert isinstance(answer, Measured)
        if not answer.own:
            raise ServerError("the metrics can't be had; the log says why")
        return lambda: exposition(merged(answer.own, answer.fronts))

    async def _ask(self, question: type[Reload] | type[Measure]) -> Reloaded | Measured:
        request = next(self._requests)
        answered: asyncio.Future[Reloaded | Measured] = self._loop.create_future()
        self._asked[request] = answered
        self._line.send(question(request))
        try:
            return await answered
        finally:
            self._asked.pop(request, None)

    def _handle(self, message: Message) -> None:
        match message:
            case Told():
                self._take_over(message)
                self._line.send(Heard(message.number))
            case Ping():
                self._line.send(Heard(message.number))
            case Reloaded() | Measured():
                answered = self._asked.get(message.request)
                if answered is not None and not answered.done():  # else nobody waits any more
                    answered.set_result(message)
            case Sample():
                own = front_part(snapshot(self._metrics.registry))
                self._line.send(Sampled(message.number, own))
            case _:
                self.queue.handle(message)

    def _take_over(self, told: Told) -> None:
        self._keys.take_over(bytes.fromhex(each) for each in told.keys)
        before = self.state, self.engine
        self.queue_bytes = told.others_bytes
        if told.engine is not None:
            known = self.engine.generation if self.engine else None
            if told.engine["generation"] != known:
                self.engine = read_description(told.engine)
                self.name = self.engine.artifact.metadata.name
                weakref.finalize(
                    self.engine, self._dropped, told.engine["generation"]
                ).atexit = False
        if told.state == "failed" and self.failure is None:
            unfit = told.deployment is not None
            reason = told.deployment or "the model process failed"
            self.failure = (DeploymentError if unfit else InferenceFailed)(reason)
        self.state = cast(State, told.state)
        if (self.state, self.engine) != before:
            self.changed()

    def _dropped(self, generation: int) -> None:
        # The last request may have ended on any thread.
        self._loop.call_soon_threadsafe(partial(self._line.send, Dropped(generation)))
