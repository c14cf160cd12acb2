"""How a connection ends: with its last answer read, or cut off, but always.

A socket that is closed with bytes unread resets the connection, and takes back the answer that the
client did not read yet. So the last answer is followed by an end of our side only, and what the
client still sends is thrown away for a while.
"""

import asyncio
import select
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

MAX_LINGER_BYTES = 64 * 1024 * 1024
SHUTDOWN_LINGER_S = 1.0  # what an answered client has to read it and go, when the server ends
KEEP_ALIVE_S = 75  # longer than common load balancers keep an idle connection


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What all connections share.

    Attributes:
        header_timeout_s: seconds from the first byte of a request, or from the connection's
            begin, until its headers are complete.
        max_connections: open at the same time.
        linger_s: seconds in which the rest of a body may come whose answer is out.
        write_timeout_s: seconds that a client may leave its answer unread.
        max_unread_bytes: of all answers that clients have not read; past it those that have
            waited longest are cut off. A single answer may be larger.
    """

    header_timeout_s: float
    max_connections: int
    linger_s: float = 10.0
    write_timeout_s: float = KEEP_ALIVE_S
    max_unread_bytes: int = 256 * 1024 * 1024


class LingeringProtocol(HttpToolsProtocol):
    """One connection, from uvicorn's point of view.

    Attributes:
        limits: see there; set by `bounded_protocol`, as is
        unread: the connections whose clients do not read their answers, longest first.
        ended: nothing more is sent.
    """

    limits: ConnectionLimits
    unread: dict["LingeringProtocol", None]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ended = False
        self._discarding = False  # nothing more is read as HTTP
        self._discarded_bytes = 0  # thrown away
        self._running_cycle: RequestResponseCycle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Takes a connection."""
        self._socket = transport
        super().connection_made(cast(asyncio.Transport, _LingeringTransport(transport, self)))

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends everything that waits on the connection."""
        self._discarding = True
        self._disarm()
        self.resume_writing()
        super().connection_lost(exc)
        # uvicorn tells only the last request that came, which may wait behind this one.
        if self._running_cycle is not None and not self._running_cycle.response_complete:
            self._running_cycle.disconnected = True
            self._running_cycle.message_event.set()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running_cycle = cycle
        super()._start_asgi_task(cycle, app)

    def end(self) -> None:
        """Closes the connection; a client that still sends can read the answer first."""
        if self.ended:
            return
        self.ended = True
        self._unset_keepalive_if_required()
        sends = self._discarding or self._sends()
        self._discarding = True
        if sends and self._socket.can_write_eof():
            # Closed with bytes unread, a socket resets the connection, answer and all.
            self._socket.write_eof()
            self.flow.resume_reading()
            self._arm(self.limits.linger_s, self._socket.abort)
        else:
            self._socket.close()
            self._arm(self.limits.write_timeout_s, self._socket.abort)  # unless all is read by then

    def shutdown(self) -> None:
        """Ends what is idle now and the rest after its answer, when the server ends."""
        if self.ended:
            if not self._socket.get_write_buffer_size():
                self._arm(SHUTDOWN_LINGER_S, self._socket.abort)
        else:
            super().shutdown()

    def pause_writing(self) -> None:
        """The client does not read its answer: it has a while."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(
                self.limits.write_timeout_s, self._socket.abort
            )
            self.unread[self] = None
            self._cut_off_the_longest_unread()

    def resume_writing(self) -> None:
        """The answer was read."""
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
            self.unread.pop(self, None)

    def _cut_off_the_longest_unread(self) -> None:
        """An annotated image may have 100 MB: clients that read none would fill memory."""
        kept = sum(each._socket.get_write_buffer_size() for each in self.unread)
        for each in [*self.unread]:
            if kept <= self.limits.max_unread_bytes or each is self:
                return
            kept -= each._socket.get_write_buffer_size()
            del self.unread[each]
            each._socket.abort()

    def _sends(self) -> bool:
        """Whether the client is in the middle of sending something."""
        raise NotImplementedError

    def _discard(self, count: int) -> None:
        self._discarded_bytes += count
        if self._discarded_bytes > MAX_LINGER_BYTES:
            self._socket.abort()

    def _left_already(self) -> bool:
        """Whether the client has closed the connection, perhaps behind what is still to be read."""
        if not hasattr(select, "POLLRDHUP"):  # Linux has it
            return False
        poll = select.poll()
        poll.register(self._socket.get_extra_info("socket").fileno(), select.POLLRDHUP)
        return bool(poll.poll(0))

    def _arm(self, seconds: float, then: Callable[[], None]) -> None:
        self._disarm()
        self._timer = self.loop.call_later(seconds, then)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _LingeringTransport:
    """A transport whose end is the protocol's decision."""

    def __init__(self, transport: asyncio.Transport, protocol: LingeringProtocol) -> None:
        self._transport = transport
        # Weak: the protocol holds this one.
        self._protocol = weakref.ref(protocol)

    def __getattr__(self, name: str) -> Any:
        """All else is the transport's own."""
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Sends, unless nothing can be sent any more: uvloop would raise."""
        if not self.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        """Sends no more; the client may still read."""
        if protocol := self._protocol():
            protocol.end()

    def is_closing(self) -> bool:
        """Also while the client may still read."""
        protocol = self._protocol()
        return protocol is None or protocol.ended or self._transport.is_closing()
