"""`python -m server`: settings, app, HTTP server; ends with 0, or says in one line why not."""

import asyncio
import logging
import math
import os
import socket
import sys
from collections.abc import Sequence
from types import FrameType

import uvicorn
from fastapi import FastAPI

from server.app import create_app
from server.errors import DeploymentError
from server.logs import configure_logging, get_logger
from server.service import Service
from server.settings import Settings

EXIT_FAILED = 1  # the service could not go on
EXIT_DEPLOYMENT = 2  # it could not start as it was deployed

# Requests end by themselves when the drain time is over; this much later they are cut off.
LAST_RESORT_S = 2
KEEP_ALIVE_S = 75  # longer than common load balancers keep an idle connection

logger = get_logger(__name__)


def main(arguments: Sequence[str]) -> int:
    """Serves until a signal comes; returns the exit code."""
    try:
        settings = Settings.load(arguments, os.environ)
        configure_logging(settings.log_format)
        return serve(settings)
    except DeploymentError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_DEPLOYMENT


def serve(settings: Settings) -> int:
    """Runs one server; raises `DeploymentError` when it can't start."""
    app = create_app(settings, on_failure=lambda: server.stop())
    service: Service = app.state.service
    with listen(settings.host, settings.port) as listener:
        server = Server(app, settings)
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        logger.info("listening", url=f"http://{shown}:{port}", model=str(settings.model))
        server.run([listener])
    if isinstance(service.failure, DeploymentError):
        raise service.failure
    return EXIT_FAILED if service.failure else 0


def listen(host: str, port: int) -> socket.socket:
    """Opens the port before the model is loaded, so that a taken one is known at once.

    Raises:
        DeploymentError: the address is taken, not ours, or unknown.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        # create_server repeats the address. Not os.strerror: it knows no error of name resolution.
        reason = (error.strerror or str(error)).partition(" (while attempting")[0]
        raise DeploymentError(f"can't listen on {host}:{port}: {reason}") from None


class Server(uvicorn.Server):
    """uvicorn, with a drain that the service knows of."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,  # its lines go through ours
                access_log=False,  # the middleware writes one, with the request id
                server_header=False,
                lifespan="on",
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=math.ceil(settings.drain_timeout_s) + LAST_RESORT_S,
            )
        )
        self._service: Service = app.state.service
        self._loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serves until a signal comes or the service fails."""
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begins the drain at a signal; a second one ends it."""
        # Not super(): it would raise the signal again after the drain, and the exit code be -15.
        assert self._loop is not None
        if self.should_exit:
            self.force_exit = True
        # A signal may come in the middle of anything the event loop does.
        self._loop.call_soon_threadsafe(self._service.begin_drain)
        self.stop()

    def stop(self) -> None:
        """Ends the server as a signal would, without its exit code."""
        self.should_exit = True


if __name__ == "__main__":
    code = main(sys.argv[1:])
    logging.shutdown()
    # Not sys.exit(): it would wait for a model call that never returns.
    os._exit(code)
