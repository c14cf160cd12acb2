"""Connections on their way from the engine process, which has the port, to the workers.

They are dispatched in turn, so that each worker has its share also of a few that live long; with a
port that all workers shared, the kernel would give most of them to one. While no worker is there
they wait in the kernel, and are not refused.
"""

import array
import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress

from server.observability.logs import get_logger

AT_ONCE = 64  # connections, before others are listened to
# In a worker: each holds a descriptor for some turns of the loop before it counts as a connection.
TAKEN_AT_ONCE = 16
RETRY_S = 0.05  # after which one is tried again that no worker had room for
_ONE = b"c"

logger = get_logger(__name__)


def passing_sockets() -> tuple[socket.socket, socket.socket]:
    """A pair of sockets, the engine process' and the worker's end, to pass connections."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs


class ConnectionDispatcher:
    """Accepts connections, and dispatches them.

    Args:
        listener: the port; closed by `close`.
    """

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._workers: list[socket.socket] = []
        self._next = 0  # the worker that is asked first
        self._held: socket.socket | None = None  # no worker had room for it
        self._listening = False
        self._closed = False
        listener.setblocking(False)

    def add(self, receiver: socket.socket) -> None:
        """A worker takes connections at the other end; nothing when it is known to."""
        if receiver not in self._workers:
            self._workers.append(receiver)
        self._listen()

    def remove(self, receiver: socket.socket) -> None:
        """A worker is gone, or does not answer; nothing when it has no connections anyway."""
        if receiver in self._workers:
            self._workers.remove(receiver)
        if not self._workers:
            self._stop_listening()

    def close(self) -> None:
        """Takes no more connections; those that were dispatched are with their workers."""
        self._closed = True
        self._stop_listening()
        self._listener.close()
        if self._held is not None:
            self._held.close()

    def _listen(self) -> None:
        if not self._listening and not self._closed and self._workers:
            self._listening = True
            asyncio.get_running_loop().add_reader(self._listener.fileno(), self._accept)
            if self._held is not None:
                self._accept()  # nothing else may come that would wake it

    def _stop_listening(self) -> None:
        if self._listening:
            self._listening = False
            asyncio.get_running_loop().remove_reader(self._listener.fileno())

    def _pause(self) -> None:
        self._stop_listening()
        asyncio.get_running_loop().call_later(RETRY_S, self._listen)

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            if self._held is None:
                try:
                    self._held, _ = self._listener.accept()
                except (BlockingIOError, ConnectionAbortedError, InterruptedError):
                    return
                except OSError as error:  # no files are left, or no memory
                    logger.error("accept_failed", reason=str(error))
                    self._pause()
                    return
            if not self._dispatch(self._held):
                self._pause()
                return
            self._held.close()  # the worker has it
            self._held = None

    def _dispatch(self, connection: socket.socket) -> bool:
        for _ in range(len(self._workers)):
            self._next = (self._next + 1) % len(self._workers)
            # A worker that is busy, or gone, takes none now.
            with suppress(OSError):
                socket.send_fds(self._workers[self._next], [_ONE], [connection.fileno()])
                return True
        return False


class ConnectionReceiver:
    """A worker's end.

    Args:
        source: what connections come from.
        take: gets each.
    """

    def __init__(self, source: socket.socket, take: Callable[[socket.socket], None]) -> None:
        self._source = source
        self._take = take

    def open(self) -> None:
        """Takes what comes, from now on."""
        asyncio.get_running_loop().add_reader(self._source.fileno(), self._receive)

    def close(self) -> None:
        """Takes what was dispatched before, and nothing more."""
        while self._receive():
            pass
        asyncio.get_running_loop().remove_reader(self._source.fileno())

    def _receive(self) -> bool:
        """Takes some; false when there is none."""
        for _ in range(TAKEN_AT_ONCE):
            connection = _received(self._source)
            if connection is None:
                return False
            self._take(connection)
        return True


def _received(source: socket.socket) -> socket.socket | None:
    size = array.array("i").itemsize
    try:
        _, sent, _, _ = source.recvmsg(len(_ONE), socket.CMSG_SPACE(size))
    except (BlockingIOError, InterruptedError, ConnectionResetError):
        return None
    for level, kind, content in sent:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            files = array.array("i", content[:size])
            return socket.socket(fileno=files[0])
    return None  # its end; or there was no file left for it, and the client sees it closed
