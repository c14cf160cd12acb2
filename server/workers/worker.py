"""One front: the whole HTTP side, before a model in another process."""

import asyncio
import os
import socket

from fastapi import FastAPI

from server.api.app import create_app
from server.errors import DeploymentError
from server.http.auth import Keys
from server.http.server import Server
from server.observability.log_output import process_log
from server.observability.metrics import Metrics
from server.observability.tracing import Tracing
from server.run import exit_code, spare_the_collector
from server.settings import Settings
from server.workers.connection_passing import Intake
from server.workers.messages import Begin, Unfit, encode
from server.workers.remote_model import RemoteModel
from server.workers.shared_memory import SharedFile


def answer_http(
    begin: Begin, settings: Settings, control: socket.socket, rest: bytes, intake: int, memory: int
) -> int:
    """Answers HTTP until the model process ends, or tells this one to.

    Args:
        begin: what it is.
        settings: of this front.
        control: to the model process.
        rest: what was read from it already.
        intake: the descriptor that connections come from.
        memory: the descriptor of the shared memory.

    Returns:
        The exit code.
    """
    keys = Keys(())
    keys.take_over(bytes.fromhex(each) for each in begin.keys)
    connected: list[RemoteModel] = []

    def connect(metrics: Metrics) -> RemoteModel:
        model = RemoteModel(
            settings,
            begin.model_name,
            control=control,
            rest=rest,
            shared=SharedFile(memory),
            metrics=metrics,
            keys=keys,
            lost=_leave,
        )
        connected.append(model)
        return model

    try:
        app = create_app(
            settings,
            open_model=connect,
            keys=keys,
            memory_bytes=begin.memory_bytes,
        )
    except DeploymentError as error:
        control.sendall(encode(Unfit(str(error))))
        return 1
    (model,) = connected
    server = FrontServer(app, settings, begin.connections, model, socket.socket(fileno=intake))
    spare_the_collector()
    server.run([])
    tracing: Tracing | None = app.state.tracing
    if tracing is not None:
        tracing.close()
    try:
        return exit_code(model.failure)
    except DeploymentError:  # which the model process says
        return 1


def _leave() -> None:
    """Ends the process at once: without the model process nobody is left who could drain."""
    process_log().close()
    os._exit(1)


class FrontServer(Server):
    """A server whose connections, and whose end, come from the model process."""

    def __init__(
        self,
        app: FastAPI,
        settings: Settings,
        max_connections: int,
        model: RemoteModel,
        intake: socket.socket,
    ) -> None:
        super().__init__(app, settings, max_connections=max_connections)
        self._model = model
        self._intake = Intake(intake, self._take)
        self._taking: set[asyncio.Task[None]] = set()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serves until the model process drains or fails."""
        await self._serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to take connections."""
        ended = self._model.changed

        def changed() -> None:
            ended()
            if self._model.state in ("draining", "failed"):
                self.stop()

        self._model.changed = changed
        await super().startup(sockets)
        self._intake.open()
        self._model.tell_up()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answers what was accepted, and ends."""
        self._intake.close()
        if self._taking:
            await asyncio.wait(self._taking)
        await super().shutdown(sockets)

    def _take(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        task = asyncio.get_running_loop().create_task(self._begin(connection))
        self._taking.add(task)
        task.add_done_callback(self._taking.discard)

    async def _begin(self, connection: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection)
        except OSError:  # the client has left already
            connection.close()

    def _protocol(self) -> asyncio.Protocol:
        return self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
