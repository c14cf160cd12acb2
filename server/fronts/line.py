"""One end of the Unix socket between the model process and a front."""

import asyncio
from collections.abc import Callable
from typing import cast

from server.fronts.messages import BadMessage, Lines, Message, encode
from server.logs import get_logger

logger = get_logger(__name__)


class Line(asyncio.Protocol):
    """Sends and receives messages; several of one turn of the event loop go in one write (uvloop).

    Args:
        handle: gets each message.
        handled: called after those of one read.
        lost: called once, when the other end is gone, or sent what is no message.
        rest: bytes that were read already.
    """

    def __init__(
        self,
        handle: Callable[[Message], None],
        *,
        lost: Callable[[], None],
        handled: Callable[[], None] = lambda: None,
        rest: bytes = b"",
    ) -> None:
        self._handle = handle
        self._handled = handled
        self._lost = lost
        self._rest = rest
        self._lines = Lines()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins with what was read already."""
        self._transport = cast(asyncio.Transport, transport)
        if self._rest:
            self.data_received(self._rest)

    def data_received(self, data: bytes) -> None:
        """Hands on what came."""
        try:
            for message in self._lines.feed(data):
                self._handle(message)
        except BadMessage as error:
            logger.error("bad_message", reason=str(error))
            self.close()
        self._handled()

    def connection_lost(self, _: Exception | None) -> None:
        """Tells it."""
        self._transport = None
        self._lost()

    def send(self, message: Message) -> None:
        """Sends a message; nothing when the other end is gone."""
        if self._transport is not None:
            self._transport.write(encode(message))

    @property
    def unsent_bytes(self) -> int:
        """What the other end has not read, beside what the kernel keeps."""
        return self._transport.get_write_buffer_size() if self._transport else 0

    def close(self) -> None:
        """Ends the connection at once."""
        if self._transport is not None:
            self._transport.abort()
