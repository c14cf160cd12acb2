"""The HTTP server of a process: its port, its connections, its signals."""

import asyncio
import math
import os
import resource
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType

import uvicorn
from fastapi import FastAPI

from server.errors import DeploymentError, ServerError
from server.http.connection import KEEP_ALIVE_S, ConnectionLimits
from server.http.middleware import connection_refusal
from server.http.protocol import bounded_protocol
from server.http.state import state_of
from server.observability.logs import get_logger
from server.settings import Settings

# Requests end by themselves when the drain time is over; this much later they are cut off.
LAST_RESORT_S = 2
# Each takes a file descriptor and some 20 KB. Ten seconds of overload make hundreds, not thousands.
MAX_CONNECTIONS = 4096
OTHER_FILES = 256  # libraries, devices, connections that are told that there are too many

logger = get_logger(__name__)


def listen(host: str, port: int) -> socket.socket:
    """Opens the port before the model is loaded, so that a taken one is known at once.

    "::" is all addresses, those of IPv4 too where the system can listen on both with one socket.

    Raises:
        DeploymentError: the address is taken, not ours, or unknown.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
    try:
        return socket.create_server((host, port), family=family, backlog=2048, dualstack_ipv6=both)
    except OSError as error:
        # create_server repeats the address. Not os.strerror: it knows no error of name resolution.
        reason = (error.strerror or str(error)).partition(" (while attempting")[0]
        raise DeploymentError(f"can't listen on {host}:{port}: {reason}") from None


def connection_limit(needed: int = MAX_CONNECTIONS) -> int:
    """How many connections may be open, after asking for as many files as so many need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed += OTHER_FILES
    if resource.RLIM_INFINITY != soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with suppress(OSError, ValueError):  # a sandbox may forbid it
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    files = needed if soft == resource.RLIM_INFINITY else min(needed, soft)
    return max(1, files - OTHER_FILES)


def has_terminal() -> bool:
    """Whether the terminal that the process was started in is still there."""
    try:
        os.tcgetpgrp(sys.stdin.fileno())
    except (OSError, ValueError):
        return False
    return True


@contextmanager
def reloading_at_sighup(
    reload: Callable[[], Awaitable[None]], leave: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    """Reloads at each SIGHUP inside of the block.

    Args:
        reload: what to do.
        leave: what to do instead where the signal says that the terminal was closed.
    """
    loop = asyncio.get_running_loop()
    requested = asyncio.Event()  # once more while a reload runs: another follows; ten more: one

    async def reload_when_requested() -> None:
        while True:
            await requested.wait()
            requested.clear()
            try:
                await reload()
            except ServerError as error:
                logger.error("sighup_ignored", code=error.code, reason=str(error))
            except Exception:  # a fault of our own must not make the next signal unheard
                logger.exception("sighup_failed")

    reloading = loop.create_task(reload_when_requested())
    terminal = os.isatty(sys.stdin.fileno()) if sys.stdin else False

    def hang_up(sig: int, frame: FrameType | None) -> None:
        if terminal and not has_terminal():  # it was closed, and nobody meant a reload
            leave(sig, frame)
        else:
            loop.call_soon_threadsafe(requested.set)

    before = signal.signal(signal.SIGHUP, hang_up)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)
        reloading.cancel()


class Server(uvicorn.Server):
    """uvicorn, with bounded connections, a drain that the service knows of, and a reload.

    Args:
        app: as `create_app` makes it.
        settings: of the process.
        max_connections: open at the same time, where there are files for them.
    """

    def __init__(
        self, app: FastAPI, settings: Settings, *, max_connections: int = MAX_CONNECTIONS
    ) -> None:
        state = state_of(app)
        service = state.service
        limits = ConnectionLimits(
            settings.header_timeout_s,
            connection_limit(max_connections),
            max_unread_bytes=service.body_budget.max_bytes,  # as much going out as coming in
        )
        super().__init__(
            uvicorn.Config(
                app,
                http=bounded_protocol(limits, partial(connection_refusal, service.metrics)),
                ws="none",
                log_config=None,  # its lines go through ours
                access_log=False,  # the middleware writes one, with the request id
                server_header=False,
                proxy_headers=False,  # or whoever is on this machine chooses the logged address
                lifespan="on",
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=math.ceil(settings.drain_timeout_s) + LAST_RESORT_S,
            )
        )
        self._service = service
        self._reload = state.reload
        self._loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serves until a signal comes or the service fails."""
        self._loop = asyncio.get_running_loop()
        with reloading_at_sighup(self._reload, self.handle_exit):
            await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begins the drain at a signal; a second Ctrl-C ends it."""
        # Not super(): it would raise the signal again after the drain, and the exit code be -15.
        assert self._loop is not None
        # A second SIGTERM is no impatience: make hands on the one that its whole group got. Whoever
        # sends it can send SIGKILL.
        if self.should_exit:
            self._loop.call_soon_threadsafe(logger.info, "signal_while_draining")
            self.force_exit = sig == signal.SIGINT
        # A signal may come in the middle of anything the event loop does.
        self._loop.call_soon_threadsafe(self._service.model.begin_drain)
        self.stop()

    def stop(self) -> None:
        """Ends the server as a signal would, without its exit code."""
        self.should_exit = True
