"""HTTP/1.1 on one connection: uvicorn's protocol with bounds on what a client may cost.

uvicorn and its parser bound neither the size nor the time of a request's head, answer what is not
HTTP in plain text, and may reset a connection while its client still sends. Here:

- the request line and the headers have at most `MAX_HEAD_BYTES`, and `header_timeout_s` to arrive,
  also on a connection that never sends anything;
- what is wrong with the HTTP itself is answered like every other error;
- past `max_connections` each further connection is refused so and closed; one on which requests
  pile up is closed behind the answers to those that were taken;
- when the answer is out before the body is in (413, 503), what still comes is thrown away: little,
  and the connection lives on; much, and it is closed so that the client can still read the answer;
- a client that does not read its answer is cut off, and sooner where many of them fill memory.
"""

import asyncio
from collections.abc import Callable
from ipaddress import IPv6Address
from typing import Any

import httptools
from starlette.responses import Response
from uvicorn.protocols.http.flow_control import CLOSE_HEADER
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from server.http.connection import ConnectionLimits, LingeringProtocol
from server.http.middleware import MAX_UNREAD_BODY_BYTES
from server.observability.metrics import TOO_MANY_CONNECTIONS

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 256
MAX_LENGTH_DIGITS = 19  # of Content-Length; zeros in front would make it as long as the head

# A chunk of one byte comes with five more; more than this a byte is no honest client's.
MAX_CHUNK_OVERHEAD = 8
# Requests that wait behind one that is answered. Each answer lets more of them come in: without a
# limit a client that sends faster than it is answered takes 50 times its bytes in memory.
MAX_PIPELINED = 16
# Connections past the limit that were refused so and stay while their clients read it; when one
# more comes, the first is closed.
MAX_REFUSED_CONNECTIONS = 64
HOP_BY_HOP = frozenset({b"connection", b"upgrade", b"http2-settings"})


# (client's address, status, code, detail) -> the whole answer to what never became a request.
Refuse = Callable[[str | None, int, str, str], Response]


class BadHttp(Exception):
    """What came is not a request that is served; raised inside the parser's callbacks."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code


def check_head(
    parser: httptools.HttpRequestParser, url: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    """Refuses what the parser lets pass: it is strict about all else.

    Args:
        parser: at the end of the head.
        url: as in the request line.
        headers: names in lower case.

    Raises:
        BadHttp: see there.
    """
    if len(url) + sum(len(name) + len(value) + 4 for name, value in headers) > MAX_HEAD_BYTES:
        raise head_too_large()
    version = parser.get_http_version()
    if version not in ("1.0", "1.1"):
        raise BadHttp(505, "http_version_not_supported", f"HTTP/{version} is not served")
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) > 1 or (version == "1.1" and not hosts):
        raise BadHttp(400, "bad_http", "a request has one Host header")
    digits = max((len(value) for name, value in headers if name == b"content-length"), default=0)
    if digits > MAX_LENGTH_DIGITS:
        detail = f"Content-Length has {digits} digits; at most {MAX_LENGTH_DIGITS} are read"
        raise BadHttp(400, "bad_http", detail)
    encodings = [value for name, value in headers if name == b"transfer-encoding"]
    if encodings and (version == "1.0" or [each.lower() for each in encodings] != [b"chunked"]):
        raise BadHttp(501, "not_implemented", "the only Transfer-Encoding served is chunked")
    if parser.get_method() == b"CONNECT":
        raise BadHttp(501, "not_implemented", "CONNECT is not served")
    try:
        path = httptools.parse_url(url).path
    except httptools.HttpParserInvalidURLError:
        path = None
    if not path or not path.startswith(b"/"):
        raise BadHttp(400, "bad_http", "the request's URL is not valid")


def head_too_large() -> BadHttp:
    """The refusal of a head of too many bytes."""
    detail = f"the request line and the headers have over {MAX_HEAD_BYTES} bytes"
    return BadHttp(431, "headers_too_large", detail)


def cause_of(error: httptools.HttpParserError) -> BadHttp:
    """What was wrong, from what the parser makes of it."""
    if isinstance(error, httptools.HttpParserCallbackError) and error.__context__ is not None:
        if isinstance(error.__context__, BadHttp):
            return error.__context__
        raise error.__context__
    return BadHttp(400, "bad_http", f"this is not a valid HTTP/1.1 request: {error}")


def bounded_protocol(limits: ConnectionLimits, refuse: Refuse) -> type[LingeringProtocol]:
    """The protocol class of one server, for uvicorn's setting `http`."""
    own = {"limits": limits, "unread": {}, "refused": {}, "refusal": staticmethod(refuse)}
    return type("Bounded", (BoundedProtocol,), own)


class BoundedProtocol(LingeringProtocol):
    """One connection; made by `bounded_protocol`.

    Attributes:
        refusal: see `Refuse`.
        refused: the connections that were too many, first ones first, until they end.
    """

    refusal: Refuse
    refused: dict["BoundedProtocol", None]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True  # what comes next belongs to a request's head
        self._begun = False  # a request has begun to come in
        self._messages = 0  # that came in whole
        self._upgrading = False
        self._wire_bytes = 0  # of this head; then of its body, with all that frames it
        self._body_bytes = 0

    # ---- the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Takes a connection, or tells it that there are too many."""
        super().connection_made(transport)
        if self.client and self.client[0].startswith("::ffff:"):
            # How a socket of both families names a client of IPv4; the log names it as it is known.
            address = IPv6Address(self.client[0]).ipv4_mapped or self.client[0]
            self.client = (str(address), self.client[1])
        others = len(self.connections) - len(self.refused) - 1
        if others < self.limits.max_connections:
            self._arm(self.limits.header_timeout_s, self._head_is_late)
            return
        self.refused[self] = None
        detail = f"{others} connections are open already"
        self._refuse(BadHttp(503, TOO_MANY_CONNECTIONS, detail))
        # It lingers so that its client can read why, and costs a descriptor meanwhile.
        for each in [*self.refused][:-MAX_REFUSED_CONNECTIONS]:
            each._socket.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends everything that waits on the connection."""
        self.refused.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Reads what came, within the bounds."""
        if self._discarding:
            self._discard(len(data))
            return
        if not (self._begun or self._messages) and data[:5] == b"POST " and self._left_already():
            # A connection waits to be accepted behind all that came before. One thread that sends
            # and closes makes them faster than requests are read: others would wait behind those.
            self._discarding = True
            self._socket.abort()
            return
        self._unset_keepalive_if_required()
        in_head, messages = self._in_head, self._messages
        try:
            self._feed(data)
            if in_head == self._in_head and messages == self._messages:
                self._wire_bytes += len(data)
            self._check_bytes()
        except BadHttp as error:
            self._refuse(error)
        except httptools.HttpParserError as error:
            self._refuse(cause_of(error))
        self._wait_on()

    def _sends(self) -> bool:
        return not self._in_head

    # ---- the parser's callbacks

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self._begun = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; a trailer is dropped, as it must not pass for a header."""
        if not self._in_head:
            return
        value = value.strip(b" \t")  # RFC 9110's optional whitespace; the parser leaves it behind
        if len(self.headers) >= MAX_HEADERS:
            raise BadHttp(431, "headers_too_large", f"there are over {MAX_HEADERS} headers")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is there: the request begins."""
        check_head(self.parser, self.url, self.headers)
        if len(self.pipeline) >= MAX_PIPELINED:
            # As all that is wrong behind requests that wait: their answers come, and are the last.
            raise BadHttp(400, "bad_http", f"over {MAX_PIPELINED} requests wait for answers")
        self._upgrading = self.parser.should_upgrade()
        if self._upgrading:
            return  # and again, without the upgrade, from `_feed`
        self._in_head = False
        self._wire_bytes = self._body_bytes = self._discarded_bytes = 0
        self._disarm()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of the body; thrown away when the answer is out already."""
        self._body_bytes += len(body)
        if self.cycle.response_complete:
            self._discarded_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request has come in whole."""
        if self._upgrading:
            return
        self._in_head = True
        self._begun = False
        self._messages += 1
        self._wire_bytes = 0
        self._disarm()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The answer is out; the rest of the body, if any, has a while to come."""
        super().on_response_complete()
        if not self._in_head and self.cycle.response_complete and not self._discarding:
            self._arm(self.limits.linger_s, self.transport.close)

    # ---- bounds

    def _feed(self, data: bytes) -> None:
        while True:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                # No other protocol is spoken here, so the request is read as if none was offered.
                # The parser can't be told so, and would take its body for the other protocol's.
                data = self._head_without_upgrade() + data[upgrade.args[0] :]
                self._upgrading = False
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def _head_without_upgrade(self) -> bytes:
        version = self.parser.get_http_version().encode()
        lines = [self.parser.get_method() + b" " + self.url + b" HTTP/" + version]
        lines += [n + b": " + v for n, v in self.headers if n not in HOP_BY_HOP]
        if not self.parser.should_keep_alive():
            lines.append(b"connection: close")
        return b"\r\n".join([*lines, b"", b""])

    def _check_bytes(self) -> None:
        if self._in_head:
            if self._wire_bytes > MAX_HEAD_BYTES:
                raise head_too_large()
        elif self._wire_bytes > MAX_HEAD_BYTES + MAX_CHUNK_OVERHEAD * self._body_bytes:
            raise BadHttp(400, "bad_http", "the body has more framing than content")

    def _wait_on(self) -> None:
        """Sets the time that the client has for what it does now."""
        if self._discarding or self.transport.is_closing():
            return
        answered = self.cycle is not None and self.cycle.response_complete
        if not self._in_head:
            if answered and self._discarded_bytes > MAX_UNREAD_BODY_BYTES:
                self.transport.close()
        elif self._begun or self._wire_bytes:
            if self._timer is None:
                self._arm(self.limits.header_timeout_s, self._head_is_late)
        elif answered and not self.pipeline and self.timeout_keep_alive_task is None:
            # The rest of a body that was answered early has come: the connection is idle again.
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _head_is_late(self) -> None:
        self._timer = None
        if self.cycle is not None and not self.cycle.response_complete:
            # We are the slow one: nothing is read while an earlier request is answered.
            self._arm(self.limits.header_timeout_s, self._head_is_late)
        elif not (self._begun or self._wire_bytes):
            self.transport.close()  # a connection that never sent anything
        else:
            limit_s = self.limits.header_timeout_s
            detail = f"the request's headers took over {limit_s:g} s"
            self._refuse(BadHttp(408, "request_timeout", detail))

    def _refuse(self, error: BadHttp) -> None:
        """Answers what is not served, in its place among the answers, and ends the connection."""
        if self._discarding:
            return
        self._discarding = True
        self._disarm()
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if self._in_head:
                cycle.keep_alive = False  # its answer comes first, and is the last
                return
            if self.pipeline or cycle.response_started:
                self._socket.abort()
                return
            # It is the body of this very request that is broken: its handler must not answer.
            cycle.disconnected = True
            cycle.message_event.set()
        client = self.client[0] if self.client else None
        response = self.refusal(client, error.status, error.code, str(error))
        head = [STATUS_LINE[error.status]]
        for name, value in (
            *self.server_state.default_headers,
            *response.raw_headers,
            CLOSE_HEADER,
        ):
            head += [name, b": ", value, b"\r\n"]
        self.transport.write(b"".join([*head, b"\r\n", bytes(response.body)]))
        self.transport.close()
