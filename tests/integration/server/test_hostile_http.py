"""What a client may send that is no request, or never ends: raw bytes on real sockets."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from structlog.testing import capture_logs
from uvicorn.server import ServerState

from server.http.connection import ConnectionLimits, LingeringProtocol
from server.http.middleware import connection_refusal
from server.http.protocol import (
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    MAX_PIPELINED,
    MAX_REFUSED_CONNECTIONS,
    bounded_protocol,
)
from tests.support.serving import LIMIT_S, HeldSession, Served, held, one_cell, served

pytestmark = pytest.mark.anyio
IMAGE = one_cell()
HOST = b"Host: x\r\n"
OK = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = b"POST /detect HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}  # as the server runs


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self._writer.write(piece)
            await self._writer.drain()

    def send_soon(self, piece: bytes) -> None:
        self._writer.write(piece)

    async def answer(self, with_body: bool = True) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the next answer."""
        async with asyncio.timeout(LIMIT_S):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.strip().split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines)
            length = int(headers.get("content-length", "0")) if with_body else 0
            body = await self._reader.readexactly(length)
        assert first.startswith("HTTP/1.1 ")
        return int(first.split()[1]), headers, body

    async def rest(self) -> bytes:
        """What comes until the server closes."""
        async with asyncio.timeout(LIMIT_S):
            return await self._reader.read()

    async def cut_off(self) -> None:
        """Waits until the server has given the connection up, whatever was sent on it before."""
        async with asyncio.timeout(LIMIT_S):
            try:
                while await self._reader.read(65536):
                    pass
            except ConnectionError:
                pass

    async def close(self) -> None:
        self._writer.transport.abort()


class Listener:
    """The app behind a port of its own."""

    def __init__(self, running: Served, port: int, state: ServerState) -> None:
        self.running = running
        self.port = port
        self.state = state
        self.clients: list[Client] = []

    async def connect(self, *pieces: bytes) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
        self.clients.append(client)
        await client.send(*pieces)
        return client


@asynccontextmanager
async def listening(
    artifact: Path,
    *,
    header_timeout_s: float = LIMIT_S,
    max_connections: int = 100,
    linger_s: float = LIMIT_S,
    write_timeout_s: float = LIMIT_S,
    max_unread_bytes: int = 2**28,
    keep_alive_s: int = LIMIT_S,
    **settings: Any,
) -> AsyncIterator[Listener]:
    limits = ConnectionLimits(
        header_timeout_s, max_connections, linger_s, write_timeout_s, max_unread_bytes
    )
    async with served(artifact, **settings) as running:
        config = uvicorn.Config(
            running.app,
            http=bounded_protocol(limits, partial(connection_refusal, running.service.metrics)),
            ws="none",
            log_config=None,
            server_header=False,
            access_log=False,
            timeout_keep_alive=keep_alive_s,
        )
        config.load()
        state = ServerState()
        loop = asyncio.get_running_loop()

        def protocol() -> asyncio.Protocol:
            made: asyncio.Protocol = config.http_protocol_class(  # type: ignore[call-arg]
                config=config, server_state=state, app_state={}, _loop=loop
            )
            return made

        server = await loop.create_server(protocol, "127.0.0.1", 0)
        listener = Listener(running, server.sockets[0].getsockname()[1], state)
        try:
            yield listener
        finally:
            server.close()
            for client in listener.clients:
                await client.close()
            await running.until(lambda: not state.connections and not state.tasks)


@pytest.fixture
async def listener(artifact: Path) -> AsyncIterator[Listener]:
    async with listening(artifact) as listener:
        yield listener


def check_problem(answer: tuple[int, dict[str, str], bytes], status: int, code: str) -> None:
    got, headers, body = answer
    problem = json.loads(body)
    assert (got, problem["code"]) == (status, code), (got, body)
    assert headers["content-type"] == "application/problem+json"
    assert set(problem) == {"type", "title", "status", "detail", "code", "request_id"}
    assert headers["x-request-id"] == problem["request_id"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["connection"] == "close"
    assert "server" not in headers


def post(*headers: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join([b"POST /detect HTTP/1.1", b"Host: x", *headers, b"", body])


BAD_HTTP: dict[str, bytes] = {
    "garbage": b"\x00\x01\x02\xff" * 50,
    "TLS": bytes.fromhex("16030100f1010000ed0303") + bytes(200),
    "unknown method": b"FOO / HTTP/1.1\r\nHost: x\r\n\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no version": b"GET / HTTP\r\n\r\n",
    "bare line feeds": b"GET / HTTP/1.1\nHost: x\n\n",
    "one bare line feed": b"GET / HTTP/1.1\r\nHost: x\nA: b\r\n\r\n",
    "bare carriage return": b"GET / HTTP/1.1\r\nHost: x\rA: b\r\n\r\n",
    "folded header": b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
    "space before colon": b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
    "null in a header": b"GET / HTTP/1.1\r\nHost: x\0y\r\n\r\n",
    "null in the URL": b"GET /\0 HTTP/1.1\r\nHost: x\r\n\r\n",
    "no ASCII in the URL": "GET /ü HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
    "nowhere": b"GET * HTTP/1.1\r\nHost: x\r\n\r\n",
    "no path": b"GET http://x HTTP/1.1\r\nHost: x\r\n\r\n",
    "impossible port": b"GET http://x:99999/ HTTP/1.1\r\nHost: x\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    "length and chunks": post(
        b"Content-Length: 4",
        b"Transfer-Encoding: chunked",
        body=b"0\r\n\r\n" + OK,  # smuggled
    ),
    "two lengths": post(b"Content-Length: 3", b"Content-Length: 30", body=b"abc"),
    "the same length twice": post(b"Content-Length: 3", b"Content-Length: 3", body=b"abc"),
    "list of lengths": post(b"Content-Length: 3, 3", body=b"abc"),
    "signed length": post(b"Content-Length: +3", body=b"abc"),
    "negative length": post(b"Content-Length: -3", body=b"abc"),
    "no length": post(b"Content-Length:", body=b"abc"),
    "length with an underscore": post(b"Content-Length: 1_0", body=b"abc"),
    "length in other digits": post("Content-Length: \u0663".encode(), body=b"abc"),
    "length of 20 digits": post(b"Content-Length: " + b"3".zfill(20), body=b"abc"),
    "length that Python does not read": post(b"Content-Length: " + b"3".zfill(5000), body=b"abc"),
    "length past 64 bits": post(b"Content-Length: 99999999999999999999999999", body=b"abc"),
    "hidden chunks": post(b"Transfer-Encoding : chunked", body=b"0\r\n\r\n"),
    "no chunks": post(b"Transfer-Encoding: chunked, identity", body=b"0\r\n\r\n"),
    "two encodings": post(
        b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity", body=b"0\r\n\r\n"
    ),
    "chunk past 64 bits": CHUNKED + b"fffffffffffffffffff\r\nab",
    "negative chunk": CHUNKED + b"-1\r\nab",
    "0x chunk": CHUNKED + b"0x1\r\na\r\n0\r\n\r\n",
    "chunk longer than it says": CHUNKED + b"1\r\nabc\r\n0\r\n\r\n",
    "chunks with line feeds": CHUNKED + b"1\na\n0\n\n",
    "length in a trailer": CHUNKED + b"1\r\na\r\n0\r\nContent-Length: 9\r\n\r\n",
}
NOT_SERVED = {
    "HTTP/2 by name": (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505, "http_version_not_supported"),
    "HTTP/0.9": (b"GET /\r\n\r\n", 505, "http_version_not_supported"),
    "tunnel": (b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n", 501, "not_implemented"),
    "compressed chunks": (
        post(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"), 501, "not_implemented",
    ),
    "chunks in HTTP/1.0": (
        b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 501, "not_implemented",
    ),
    "unknown encoding": (
        post(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n"), 501, "not_implemented",
    ),
    "long URL": (
        b"GET /" + b"a" * MAX_HEAD_BYTES + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431,
        "headers_too_large",
    ),
    "long query": (
        b"GET /?conf=" + b"1" * 1_000_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431,
        "headers_too_large",
    ),
    "long header": (
        b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 4_000_000, 431, "headers_too_large",
    ),
    "long name": (b"GET / HTTP/1.1\r\n" + b"a" * 4_000_000, 431, "headers_too_large"),
    "10,000 headers": (
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 10_000 + b"\r\n", 431,
        "headers_too_large",
    ),
    "endless line breaks": (b"\r\n" * 2_000_000, 431, "headers_too_large"),
}  # fmt: skip
REFUSED = {name: (sent, 400, "bad_http") for name, sent in BAD_HTTP.items()} | NOT_SERVED


SMALL = [name for name in REFUSED if len(REFUSED[name][0]) < 10_000]


@pytest.mark.parametrize(
    ("name", "piece_bytes"), [(n, 10_000) for n in REFUSED] + [(n, 1) for n in SMALL]
)
async def test_what_is_no_request_is_told_so_once_and_the_connection_ends(
    listener: Listener, name: str, piece_bytes: int
) -> None:
    sent, status, code = REFUSED[name]
    client = await listener.connect()
    # All of it, though the answer may come before its end: it must not be lost with the rest.
    for start in range(0, len(sent), piece_bytes):
        client.send_soon(sent[start : start + piece_bytes])
        if piece_bytes == 1:
            await asyncio.sleep(0)
    check_problem(await client.answer(), status, code)
    assert await client.rest() == b""
    text = (await listener.running.client.get("/metrics")).text
    assert f'detector_requests_total{{route="unmatched",status="{status}"}} 1.0' in text
    after = await listener.connect(OK)
    assert (await after.answer())[0] == 200


async def test_a_broken_body_ends_its_request(listener: Listener) -> None:
    client = await listener.connect(CHUNKED, b"1\r\na\r\n")
    await listener.running.until(lambda: len(listener.state.tasks) == 1)
    await client.send(b"zz\r\n")
    check_problem(await client.answer(), 400, "bad_http")
    await listener.running.until(lambda: not listener.state.tasks)


async def test_as_many_headers_as_are_allowed_are_served(listener: Listener) -> None:
    lines = b"".join(b"A%d: b\r\n" % i for i in range(MAX_HEADERS - 1))
    client = await listener.connect(b"GET /health/live HTTP/1.1\r\nHost: x\r\n" + lines + b"\r\n")
    assert (await client.answer())[0] == 200


@pytest.mark.parametrize("sent", [b"\r\n", b"G", OK[:-2], OK[:-2] + b"A: b", OK + OK[:9]])
async def test_headers_that_do_not_end_in_time_are_told_so(artifact: Path, sent: bytes) -> None:
    async with listening(artifact, header_timeout_s=0.1) as listener:
        client = await listener.connect(sent)
        if sent.startswith(OK):
            assert (await client.answer())[0] == 200
        check_problem(await client.answer(), 408, "request_timeout")
        assert await client.rest() == b""


async def test_a_byte_now_and_then_buys_headers_no_time(artifact: Path) -> None:
    async with listening(artifact, header_timeout_s=0.3) as listener:
        client = await listener.connect(OK[:-2] + b"A: ")
        answer = asyncio.create_task(client.answer())
        while not answer.done():
            client.send_soon(b"a")
            await asyncio.wait([answer], timeout=0.02)
        check_problem(await answer, 408, "request_timeout")


async def test_a_connection_that_never_sends_is_closed(artifact: Path) -> None:
    async with listening(artifact, header_timeout_s=0.1) as listener:
        client = await listener.connect()
        assert await client.rest() == b""


async def test_a_slow_body_is_not_slow_headers(artifact: Path) -> None:
    async with listening(artifact, header_timeout_s=0.05, request_timeout_s=0.4) as listener:
        client = await listener.connect(post(b"Content-Length: 9", body=b"abc"))
        status, _, body = await client.answer()
        assert (status, json.loads(body)["code"]) == (504, "deadline_exceeded")


async def test_requests_sent_at_once_are_answered_in_their_order(listener: Listener) -> None:
    image = post(b"Content-Length: %d" % len(IMAGE), body=IMAGE)
    client = await listener.connect(
        image + OK + image + b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n"
    )
    assert [(await client.answer())[0] for _ in range(4)] == [200, 200, 200, 404]


async def test_requests_that_pile_up_end_the_connection(listener: Listener) -> None:
    client = await listener.connect(OK * 10_000)
    answers = (await client.rest()).split(b"HTTP/1.1 200 OK\r\n")[1:]
    assert len(answers) == 1 + MAX_PIPELINED
    assert [b"connection: close" in answer for answer in answers] == [
        *[False] * MAX_PIPELINED,
        True,
    ]


async def test_garbage_behind_a_request_does_not_take_its_answer(artifact: Path) -> None:
    async with listening(artifact, open_session=HeldSession) as listener:
        image = post(b"Content-Length: %d" % len(IMAGE), body=IMAGE)
        client = await listener.connect(image + b"\x00garbage")
        await listener.running.until(lambda: bool(held(listener.running).batch_sizes))
        held(listener.running).gate.set()
        status, headers, _ = await client.answer()
        assert (status, headers["connection"]) == (200, "close")
        assert await client.rest() == b""


async def test_a_trailer_is_no_header(artifact: Path) -> None:
    async with listening(artifact, api_keys="secret") as listener:
        chunk = b"%x\r\n%s\r\n" % (len(IMAGE), IMAGE)
        client = await listener.connect(CHUNKED + chunk + b"0\r\nX-API-Key: secret\r\n\r\n")
        assert (await client.answer())[0] == 401
        with_key = CHUNKED.replace(HOST, HOST + b"X-API-Key: secret\r\n")
        client = await listener.connect(with_key + chunk + b"0\r\nX-Other: 1\r\n\r\n" + OK)
        assert [(await client.answer())[0] for _ in range(2)] == [200, 200]


@pytest.mark.parametrize("blanks", [(b"", b""), (b"", b" \t"), (b" \t ", b""), (b"\t", b"\t ")])
async def test_white_space_around_a_header_is_no_part_of_it(
    artifact: Path, blanks: tuple[bytes, bytes]
) -> None:
    def header(name: bytes, value: bytes) -> bytes:
        return name + b":" + value.join(blanks)

    async with listening(artifact, api_keys="secret") as listener:
        key = header(b"X-API-Key", b"secret")
        request_id = header(b"X-Request-ID", b"mine")
        # The parser refuses a tab behind it, which is as safe.
        framing = header(b"Transfer-Encoding", b"chunked").replace(b"\t", b" ")
        length = header(b"Content-Length", b"%d" % len(IMAGE))
        expect = header(b"Expect", b"100-continue")
        chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(IMAGE), IMAGE)
        client = await listener.connect(post(key, request_id, framing, body=chunks))
        status, headers, _ = await client.answer()
        assert (status, headers["x-request-id"]) == (200, "mine")
        await client.send(post(key, expect, length))
        assert (await client.answer())[0] == 100
        await client.send(IMAGE)
        assert (await client.answer())[0] == 200


async def test_what_else_is_blank_belongs_to_a_header(artifact: Path) -> None:
    async with listening(artifact, api_keys="se cret") as listener:
        sent = {b"se cret": 200, b"se  cret": 401, b"\xa0se cret": 401, b"se cret\xa0": 401}
        client = await listener.connect()
        for key, status in sent.items():
            line = b"X-API-Key: %s\r\n" % key
            await client.send(b"GET /model HTTP/1.1\r\n" + HOST + line + b"\r\n")
            assert (await client.answer())[0] == status


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/health", 200), ("/health/live", 200), ("/health/ready", 200), ("/metrics", 200),
        ("/v2/health/live", 200), ("/v2/health/ready", 200), ("/", 200), ("/model", 401),
        ("/detect", 405), ("/nothing", 404),
    ],
)  # fmt: skip
async def test_head_is_answered_as_get_without_the_body(
    artifact: Path, path: str, status: int
) -> None:
    async with listening(artifact, api_keys="secret") as listener:
        sent = b"HEAD %s HTTP/1.1\r\nHost: x\r\n\r\n" % path.encode()
        with capture_logs() as lines:
            client = await listener.connect(sent + sent.replace(b"HEAD", b"GET"))
            head, headers, _ = await client.answer(with_body=False)
            get, _, body = await client.answer()  # a body behind the head would be in its place
            await listener.running.until(lambda: not listener.state.tasks)
        assert (head, get) == (status, status)
        if path != "/metrics":  # which has grown meanwhile
            assert int(headers["content-length"]) == len(body)
        if path == "/" or status != 200:  # no probe
            assert [line["method"] for line in lines] == ["HEAD", "GET"]


@pytest.mark.parametrize("framing", [b"1;" + b"a" * 1000, b"0\r\nA: " + b"a" * 1000])
async def test_framing_without_end_is_refused(listener: Listener, framing: bytes) -> None:
    client = await listener.connect(CHUNKED)
    await listener.running.until(lambda: len(listener.state.tasks) == 1)
    client.send_soon(framing)
    for _ in range(1000):
        client.send_soon(b"a" * 1000)
    check_problem(await client.answer(), 400, "bad_http")


async def test_chunks_of_one_byte_are_served(listener: Listener) -> None:
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in IMAGE)
    client = await listener.connect(CHUNKED, chunks, b"0\r\n\r\n")
    assert (await client.answer())[0] == 200


async def test_an_absolute_url_and_http_1_0_are_served(listener: Listener) -> None:
    client = await listener.connect(b"GET http://x/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await client.answer())[0] == 200
    client = await listener.connect(b"GET /health/live HTTP/1.0\r\n\r\n")
    status, headers, _ = await client.answer()
    assert (status, headers["connection"]) == (200, "close")
    assert await client.rest() == b""


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket"])
@pytest.mark.parametrize("piece_bytes", [100_000, 7])
async def test_an_offered_upgrade_is_not_taken_and_the_request_served_whole(
    listener: Listener, protocol: bytes, piece_bytes: int
) -> None:
    # Java's client offers h2c with its first request, body and all.
    offer = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: " + protocol, b"HTTP2-Settings: AA")
    sent = post(*offer, b"Content-Length: %d" % len(IMAGE), body=IMAGE) + OK
    pieces = [sent[i : i + piece_bytes] for i in range(0, len(sent), piece_bytes)]
    client = await listener.connect(*pieces)
    assert [(await client.answer())[0] for _ in range(2)] == [200, 200]


async def test_who_waits_for_a_go_ahead_gets_it_or_the_refusal(listener: Listener) -> None:
    expect = b"Expect: 100-continue"
    client = await listener.connect(post(expect, b"Content-Length: %d" % len(IMAGE)))
    assert (await client.answer())[0] == 100
    await client.send(IMAGE)
    assert (await client.answer())[0] == 200
    client = await listener.connect(post(expect, b"Content-Length: 999999999"))
    status, headers, body = await client.answer()
    assert (status, json.loads(body)["code"]) == (413, "body_too_large")
    # It may or may not send the body now: only a closed connection is clear.
    assert headers["connection"] == "close"
    assert await client.rest() == b""


async def test_a_connection_outlives_an_early_answer_when_little_is_to_come(
    artifact: Path,
) -> None:
    async with listening(artifact, max_body_bytes=1000) as listener:
        client = await listener.connect()
        for _ in range(3):
            await client.send(post(b"Content-Length: 500000", body=b"a" * 250_000))
            status, headers, _ = await client.answer()
            assert (status, "connection" in headers) == (413, False)
            await client.send(b"a" * 250_000)
        await client.send(OK)
        assert (await client.answer())[0] == 200


async def test_a_full_queue_is_told_on_a_connection_that_lives_on(artifact: Path) -> None:
    limits = {"max_batch_size": 1, "max_queue_images": 1, "max_images_per_request": 1}
    async with listening(artifact, open_session=HeldSession, **limits) as listener:
        image = post(b"Content-Length: %d" % len(IMAGE), body=IMAGE)
        session = held(listener.running)
        runs = await listener.connect(image)
        await listener.running.until(lambda: session.batch_sizes == [1])
        waits = await listener.connect(image)
        await listener.running.until(lambda: listener.running.queue_images == 1)
        refused = await listener.connect()
        for _ in range(30):
            await refused.send(post(b"Content-Length: 60000", body=bytes(60_000)))
            status, headers, body = await refused.answer()
            assert (status, json.loads(body)["code"]) == (503, "queue_full")
            assert "connection" not in headers
        session.gate.set()
        assert [(await client.answer())[0] for client in (runs, waits)] == [200, 200]
        await refused.send(image)
        assert (await refused.answer())[0] == 200


async def test_a_connection_that_outlived_an_early_answer_is_idle_then(artifact: Path) -> None:
    async with listening(artifact, max_body_bytes=1000, keep_alive_s=1) as listener:
        client = await listener.connect(post(b"Content-Length: 5000", body=b"a" * 1000))
        assert (await client.answer())[0] == 413
        await client.send(b"a" * 4000)
        assert await client.rest() == b""


@pytest.mark.parametrize(
    "head", [post(b"Content-Length: 100000000000"), CHUNKED + b"ffffffffffff\r\n"]
)
async def test_who_sends_on_and_on_behind_an_answer_is_cut_off(artifact: Path, head: bytes) -> None:
    async with listening(artifact, max_body_bytes=1000) as listener:
        client = await listener.connect(head)
        sent = 0

        async def send_on() -> None:
            nonlocal sent
            while True:
                await client.send(bytes(1_000_000))
                sent += 1_000_000

        sending = asyncio.create_task(send_on())
        status, _, body = await client.answer()
        assert (status, json.loads(body)["code"]) == (413, "body_too_large")
        with pytest.raises(ConnectionError):
            async with asyncio.timeout(LIMIT_S):
                await sending
        assert sent < 200_000_000
        await listener.running.until(lambda: not listener.state.connections)


@pytest.mark.parametrize("announced", [5000, 100_000_000])
async def test_who_keeps_back_the_rest_behind_an_answer_is_cut_off(
    artifact: Path, announced: int
) -> None:
    async with listening(artifact, max_body_bytes=1000, linger_s=0.1) as listener:
        client = await listener.connect(post(b"Content-Length: %d" % announced, body=b"abc"))
        assert (await client.answer())[0] == 413
        await client.cut_off()
        await listener.running.until(lambda: not listener.state.connections)


async def test_the_answer_can_be_read_after_all_was_sent(artifact: Path) -> None:
    body = bytes(20_000_000)

    def blocking(port: int) -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as simple:
            simple.sendall(post(b"Content-Length: %d" % len(body), body=body))
            return simple.recv(1000)

    async with listening(artifact, max_body_bytes=1000) as listener:
        answer = await asyncio.to_thread(blocking, listener.port)
        assert answer.startswith(b"HTTP/1.1 413 ")


async def test_who_does_not_fetch_answers_is_cut_off(artifact: Path) -> None:
    async with listening(artifact, write_timeout_s=0.2) as listener:
        client = await listener.connect()
        large = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n"
        client.send_soon(large * (1 + MAX_PIPELINED))
        await listener.running.until(lambda: bool(listener.state.connections))
        await listener.running.until(lambda: not listener.state.connections)
        await listener.running.until(lambda: not listener.state.tasks)


async def test_of_many_answers_that_nobody_fetches_the_longest_unread_are_cut_off(
    artifact: Path,
) -> None:
    # Together larger than what the kernel takes, and than the limit.
    large = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n" * MAX_PIPELINED
    async with listening(artifact, max_unread_bytes=1, write_timeout_s=1000) as listener:
        seen: list[LingeringProtocol] = []

        def another_waits() -> bool:
            for each in listener.state.connections:
                assert isinstance(each, LingeringProtocol)
                waiting = [one for one in each.unread if one not in seen]
                seen.extend(waiting)
                return bool(waiting)
            return False

        for _ in range(3):
            client = await listener.connect()
            client.send_soon(large)
            await listener.running.until(another_waits)
        # A single one may be larger than the limit.
        await listener.running.until(lambda: list(seen[-1].unread) == [seen[-1]])
        await listener.running.until(lambda: len(listener.state.connections) == 1)
        assert seen[-1] in listener.state.connections
    assert len(seen) == 3


async def test_the_end_of_the_server_does_not_take_an_answer_from_who_reads_it(
    artifact: Path,
) -> None:
    loop = asyncio.get_running_loop()
    async with listening(artifact) as listener:
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.setblocking(False)
            await loop.sock_connect(slow, ("127.0.0.1", listener.port))
            await listener.running.until(lambda: bool(listener.state.connections))
            (connection,) = listener.state.connections
            assert isinstance(connection, LingeringProtocol)
            # So that the answer does not wait in the kernel, which would send it anyway.
            served_socket = connection.transport.get_extra_info("socket")
            served_socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            openapi = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            await loop.sock_sendall(slow, openapi)
            await listener.running.until(lambda: connection.ended)
            assert connection.transport.get_write_buffer_size()
            connection.shutdown()
            answer = b""
            while piece := await loop.sock_recv(slow, 4096):
                answer += piece
        assert "paths" in json.loads(answer.partition(b"\r\n\r\n")[2])


async def test_one_connection_too_many_is_told_so(artifact: Path) -> None:
    async with listening(artifact, max_connections=2) as listener:
        first, second = [await listener.connect(OK) for _ in range(2)]
        for client in (first, second):
            assert (await client.answer())[0] == 200
        third = await listener.connect()
        answer = await third.answer()
        check_problem(answer, 503, "too_many_connections")
        assert answer[1]["retry-after"] == "1"
        await third.close()
        await first.close()
        await listener.running.until(lambda: len(listener.state.connections) == 1)
        text = (await listener.running.client.get("/metrics")).text
        assert 'detector_rejected_total{reason="too_many_connections"} 1.0' in text
        fourth = await listener.connect(OK)
        assert (await fourth.answer())[0] == 200


async def test_a_draining_server_refuses_a_busy_client_once_and_closes(artifact: Path) -> None:
    async with listening(artifact, open_session=HeldSession) as listener:
        session = held(listener.running)
        image = post(b"Content-Length: %d" % len(IMAGE), body=IMAGE)
        accepted = await listener.connect(image)
        busy = await listener.connect(OK)
        status, headers, _ = await busy.answer()
        assert (status, headers.get("connection")) == (200, None)
        await listener.running.until(lambda: session.batch_sizes == [1])
        listener.running.service.model.begin_drain()
        await busy.send(image)
        refused = await busy.answer()
        check_problem(refused, 503, "draining")
        assert int(refused[1]["retry-after"]) >= 1
        assert await busy.rest() == b""
        session.gate.set()
        status, headers, _ = await accepted.answer()
        assert (status, headers["connection"]) == (200, "close")
        assert await accepted.rest() == b""


async def test_far_too_many_connections_are_told_so_and_few_of_them_are_kept(
    artifact: Path,
) -> None:
    async with listening(artifact, max_connections=1) as listener:
        first = await listener.connect(OK)
        assert (await first.answer())[0] == 200
        clients = [await listener.connect(OK) for _ in range(3 * MAX_REFUSED_CONNECTIONS)]
        for client in clients:
            check_problem(await client.answer(), 503, "too_many_connections")
        kept = 1 + MAX_REFUSED_CONNECTIONS
        await listener.running.until(lambda: len(listener.state.connections) == kept)
        await first.send(OK)
        assert (await first.answer())[0] == 200


async def test_connections_that_were_told_take_nobodys_place(artifact: Path) -> None:
    async with listening(artifact, max_connections=1) as listener:
        first = await listener.connect(OK)
        assert (await first.answer())[0] == 200
        for client in [await listener.connect(OK) for _ in range(3)]:
            check_problem(await client.answer(), 503, "too_many_connections")
        await first.close()
        await listener.running.until(lambda: len(listener.state.connections) == 3)
        assert (await (await listener.connect(OK)).answer())[0] == 200


async def test_a_client_that_leaves_in_the_middle_leaves_nothing_behind(listener: Listener) -> None:
    for sent in (b"", b"GET", OK[:-2], post(b"Content-Length: 9", body=b"abc"), CHUNKED):
        client = await listener.connect(sent)
        await listener.running.until(lambda: bool(listener.state.connections))
        await client.close()
        await listener.running.until(lambda: not listener.state.connections)
        await listener.running.until(lambda: not listener.state.tasks)


async def test_a_connection_that_was_closed_before_it_was_accepted_is_not_read(
    listener: Listener,
) -> None:
    with capture_logs() as lines:
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", listener.port)) as left:
                left.sendall(post(b"Content-Length: %d" % len(IMAGE), body=IMAGE))
        # Accepted behind them.
        client = await listener.connect(OK)
        assert (await client.answer())[0] == 200
        await listener.running.until(lambda: len(listener.state.connections) == 1)
    assert lines == []


@pytest.mark.parametrize("delayed", [False, True])
async def test_who_closes_the_sending_half_behind_a_get_is_answered(
    listener: Listener, delayed: bool
) -> None:
    # As `nc -N` and some health checks do.
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", listener.port)) as client:
            client.setblocking(False)
            client.sendall(b"GET /health/live HTTP/1.0\r\n\r\n")
            if not delayed:
                client.shutdown(socket.SHUT_WR)
            answer = await asyncio.get_running_loop().sock_recv(client, 65536)
            assert answer.startswith(b"HTTP/1.1 200")


async def test_who_leaves_right_behind_a_request_takes_no_place_in_the_queue(
    artifact: Path,
) -> None:
    async with listening(
        artifact,
        open_session=HeldSession,
        max_batch_size=1,
        max_queue_images=2,
        max_images_per_request=2,
    ) as listener:
        session = held(listener.running)
        image = post(b"Content-Length: %d" % len(IMAGE), body=IMAGE)
        others = [await listener.connect(image)]
        await listener.running.until(lambda: session.batch_sizes == [1])
        others.append(await listener.connect(image))
        await listener.running.until(lambda: listener.running.queue_images == 1)
        files = [("f", (f"{i}.png", IMAGE, "image/png")) for i in range(2)]
        request = httpx.Request("POST", "http://x/detect", files=files)
        body = request.read()
        kind = request.headers["content-type"].encode()
        head = (b"Content-Type: " + kind, b"Content-Length: %d" % len(body))
        leaving = socket.create_connection(("127.0.0.1", listener.port))
        await listener.running.until(lambda: len(listener.state.connections) == 3)
        request_bytes = post(*head, body=body)
        with capture_logs() as lines:
            leaving.sendall(request_bytes[:-9])
            await listener.running.until(lambda: len(listener.state.tasks) == 3)
            leaving.sendall(request_bytes[-9:])
            leaving.close()
            await listener.running.until(lambda: len(listener.state.connections) == 2)
            await listener.running.until(lambda: len(listener.state.tasks) == 2)
        # Its two images have no room in the queue; had it asked for it, this were a 503.
        assert [line["status"] for line in lines] == [499]
        session.gate.set()
        assert {(await other.answer())[0] for other in others} == {200}


async def test_who_leaves_with_requests_waiting_abandons_the_one_that_runs(artifact: Path) -> None:
    async with listening(artifact, open_session=HeldSession) as listener:
        session = held(listener.running)
        image = post(b"Content-Length: %d" % len(IMAGE), body=IMAGE)
        other = await listener.connect(image)  # keeps the model busy
        await listener.running.until(lambda: session.batch_sizes == [1])
        client = await listener.connect(image + OK)
        await listener.running.until(lambda: listener.running.queue_images == 1)
        with capture_logs() as lines:
            await client.close()
            await listener.running.until(lambda: listener.running.queue_images == 0)
            await listener.running.until(lambda: len(listener.state.tasks) == 1)
        session.gate.set()
        assert (await other.answer())[0] == 200
        assert session.batch_sizes == [1]
        assert [line["status"] for line in lines] == [499]
