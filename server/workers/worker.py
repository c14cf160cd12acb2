"""One HTTP worker: the whole HTTP side, before a model in another process."""

import asyncio
import os
import socket

from fastapi import FastAPI

from server.api.app import create_app
from server.errors import DeploymentError
from server.http.auth import Keys
from server.http.server import Server
from server.http.state import state_of
from server.observability.log_output import process_log
from server.observability.metrics import Metrics
from server.run import exit_code, spare_the_collector
from server.settings import Settings
from server.workers.connection_passing import ConnectionReceiver
from server.workers.messages import Init, StartupFailed, encode
from server.workers.remote_model import RemoteModel
from server.workers.shared_memory import SharedFile


def serve_http(
    init: Init, settings: Settings, control: socket.socket, rest: bytes, receiver: int, memory: int
) -> int:
    """Serves HTTP until the engine process ends, or stops this one.

    Args:
        init: what it is.
        settings: of this worker.
        control: to the engine process.
        rest: what was read from it already.
        receiver: the descriptor that connections come from.
        memory: the descriptor of the shared memory.

    Returns:
        The exit code.
    """
    keys = Keys(())
    keys.take_over(bytes.fromhex(each) for each in init.keys)
    connected: list[RemoteModel] = []

    def connect(metrics: Metrics) -> RemoteModel:
        model = RemoteModel(
            settings,
            init.model_name,
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
            memory_bytes=init.memory_bytes,
        )
    except DeploymentError as error:
        control.sendall(encode(StartupFailed(str(error))))
        return 1
    (model,) = connected
    server = WorkerServer(app, settings, init.connections, model, socket.socket(fileno=receiver))
    spare_the_collector()
    server.run([])
    tracing = state_of(app).tracing
    if tracing is not None:
        tracing.close()
    try:
        return exit_code(model.failure)
    except DeploymentError:  # which the engine process says
        return 1


def _leave() -> None:
    """Ends the process at once: without the engine process nobody is left who could drain."""
    process_log().close()
    os._exit(1)


class WorkerServer(Server):
    """A server whose connections, and whose end, come from the engine process."""

    def __init__(
        self,
        app: FastAPI,
        settings: Settings,
        max_connections: int,
        model: RemoteModel,
        receiver: socket.socket,
    ) -> None:
        super().__init__(app, settings, max_connections=max_connections)
        self._model = model
        self._receiver = ConnectionReceiver(receiver, self._take)
        self._taking: set[asyncio.Task[None]] = set()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serves until the engine process drains or fails."""
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
        self._receiver.open()
        self._model.send_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answers what was accepted, and ends."""
        self._receiver.close()
        if self._taking:
            await asyncio.wait(self._taking)
        await super().shutdown(sockets)

    def _take(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        task = asyncio.get_running_loop().create_task(self._serve_connection(connection))
        self._taking.add(task)
        task.add_done_callback(self._taking.discard)

    async def _serve_connection(self, connection: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection)
        except OSError:  # the client has left already
            connection.close()

    def _protocol(self) -> asyncio.Protocol:
        return self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
