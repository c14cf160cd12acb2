"""HTTP/1.1 over kept-alive connections, at little CPU: client and server share the machine.

A request is bytes that were put together once, an answer is parsed by httptools (C). Nothing is
retried and nothing is queued: what the client does to a server is what the load says.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Self, cast
from urllib.parse import urlsplit

import httptools

CONNECT_S = 10.0  # a full listen backlog shows as a connection that is never made


class NoAnswer(Exception):
    """The request has no answer; the message is a word for the summary's table."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One whole response.

    Attributes:
        status: of HTTP.
        headers: names in lower case.
        body: without transfer encoding.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Request:
    """One request, ready to be sent any number of times.

    Attributes:
        wire: head and body as they go over the connection.
        images: images in it.
        check: says what is wrong with an answer of status 200, or None.
        check_all: `check` looks at answers of every status.
        leave_after_s: the client vanishes after so many seconds without an answer.
        name: for whoever reads the outcomes.
    """

    wire: bytes
    images: int = 1
    check: Callable[[Answer], str | None] | None = None
    leave_after_s: float | None = None
    name: str = ""
    check_all: bool = False


def request_wire(
    method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> bytes:
    """A request with a Content-Length as bytes; `headers` may override Host."""
    lines = {"Host": "localhost", "Content-Length": str(len(body))} | dict(headers or {})
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


def image_request(
    path: str, image: bytes, check: Callable[[Answer], str | None] | None = None, name: str = ""
) -> Request:
    """POSTs one image as the raw body."""
    wire = request_wire("POST", path, image, {"Content-Type": "image/jpeg"})
    return Request(wire, 1, check, name=name)


class Client:
    """Connections to one server, reused last in, first out; opened whenever none is idle.

    Args:
        url: such as http://127.0.0.1:8000.
        timeout_s: from sending to the end of the answer.
        max_connections: open at the same time; None for as many as there are requests.
    """

    def __init__(
        self, url: str, *, timeout_s: float = 60.0, max_connections: int | None = None
    ) -> None:
        address = urlsplit(url)
        assert address.hostname, url
        assert address.port, url
        self._address = address.hostname, address.port
        self._timeout_s = timeout_s
        self._max_connections = max_connections
        self._opening = 0
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()
        self.connections_made = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes all connections and waits until they are."""
        for connection in list(self._open):
            connection.close()
        for connection in list(self._open):
            await connection.closed
        self._idle.clear()

    async def ask(self, request: Request) -> Answer:
        """Sends a request and waits for the whole answer.

        Raises:
            NoAnswer: "connect", "disconnected", "malformed" or "timeout", "left" where
                `leave_after_s` passed, and "no connection free": nothing was sent.
        """
        leave_s = request.leave_after_s
        limit_s = self._timeout_s if leave_s is None else min(self._timeout_s, leave_s)
        connection = await self._connection()
        try:
            async with asyncio.timeout(limit_s):
                answer = await connection.exchange(request.wire)
        except TimeoutError:
            raise NoAnswer("timeout" if limit_s == self._timeout_s else "left") from None
        finally:
            if connection.reusable:
                self._idle.append(connection)
            else:
                connection.close()
        return answer

    async def _connection(self) -> "_Connection":
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                return connection
        if len(self._open) + self._opening == self._max_connections:
            raise NoAnswer("no connection free")
        loop = asyncio.get_running_loop()
        self._opening += 1
        try:
            async with asyncio.timeout(CONNECT_S):
                _, connection = await loop.create_connection(_Connection, *self._address)
        except OSError:  # TimeoutError is one
            raise NoAnswer("connect") from None
        finally:
            self._opening -= 1
        self.connections_made += 1
        self._open.add(connection)
        connection.closed.add_done_callback(lambda _: self._open.discard(connection))
        return connection


@dataclass(slots=True)
class _Partial:
    headers: dict[str, str] = field(default_factory=dict)
    body: list[bytes] = field(default_factory=list)


class _Connection(asyncio.Protocol):
    """One request at a time. The methods `on_*` are called by the parser."""

    def __init__(self) -> None:
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._partial = _Partial()
        self._waiting: asyncio.Future[Answer] | None = None
        self._keep_alive = True

    @property
    def reusable(self) -> bool:
        return self._keep_alive and self._waiting is None and not self.closed.done()

    async def exchange(self, wire: bytes) -> Answer:
        assert self._waiting is None, "a connection carries one request at a time"
        if self.closed.done() or self._transport is None:
            raise NoAnswer("disconnected")
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(wire)
        try:
            return await self._waiting
        except asyncio.CancelledError:
            self._keep_alive = False  # its answer would be taken for the next one's
            raise
        finally:
            self._waiting = None

    def close(self) -> None:
        # abort(), as what is still to be sent would hold the socket open.
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by class

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._fail("malformed")
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._keep_alive = False
        self._fail("disconnected")
        if not self.closed.done():
            self.closed.set_result(None)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._partial.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._partial.body.append(body)

    def on_message_complete(self) -> None:
        partial, self._partial = self._partial, _Partial()
        status = self._parser.get_status_code()
        if 100 <= status < 200:  # an interim response: the final one follows
            return
        self._keep_alive = self._keep_alive and self._parser.should_keep_alive()
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(Answer(status, partial.headers, b"".join(partial.body)))

    def _fail(self, reason: str) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(NoAnswer(reason))
