"""Clients as no library is: they leave in the middle of things, or send drop by drop."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from urllib.parse import urlsplit

from benchmarks.endurance.shots import Shot
from benchmarks.load.http_client import Answer, Client
from benchmarks.load.loops import Outcome, send

LEFT = "left"  # as `Client.ask` says it
PIECES = 8
LIMIT_S = 60.0


async def leaves_in_body(client: Client, shot: Shot, request_id: str, after_s: float) -> Outcome:
    """Sends two thirds of a request and is gone."""
    request = shot.request(request_id)
    # A refusal may come before the client has left. The connection can't be used again then: what
    # came next on it would be taken for the rest of this body.
    wire = request.wire.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
    cut = len(wire) - len(shot.body) // 3 - 1
    partial = replace(request, wire=wire[:cut], leave_after_s=after_s)
    return await send(client, partial, time.perf_counter())


async def leaves_waiting(client: Client, shot: Shot, request_id: str, after_s: float) -> Outcome:
    """Sends a request and is gone before the answer, unless that is quick."""
    request = replace(shot.request(request_id), leave_after_s=after_s)
    return await send(client, request, time.perf_counter())


async def leaves_in_answer(url: str, shot: Shot, request_id: str) -> Outcome:
    """Is gone after the first byte of the answer."""
    started_s = time.perf_counter()
    error = LEFT
    try:
        async with asyncio.timeout(LIMIT_S):
            reader, writer = await _connected(url)
            try:
                writer.write(shot.wire(request_id))
                if not await reader.read(1):
                    error = "disconnected"
            finally:
                writer.transport.abort()
    except OSError as problem:  # TimeoutError is one
        error = type(problem).__name__
    return _outcome(started_s, 0, shot, error, request_id)


async def sends_slowly(url: str, shot: Shot, request_id: str, seconds: float) -> Outcome:
    """Sends the body piece by piece, then reads the answer."""
    started_s = time.perf_counter()
    status, error = 0, None
    try:
        async with asyncio.timeout(LIMIT_S + seconds):
            reader, writer = await _connected(url)
            try:
                wire = shot.wire(request_id).replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
                head_end = len(wire) - len(shot.body)
                writer.write(wire[:head_end])
                for piece in pieces(shot.body, PIECES):
                    await asyncio.sleep(seconds / PIECES)
                    writer.write(piece)
                answer = parse_answer(await reader.read())
            finally:
                writer.transport.abort()
        if answer is None:
            error = "disconnected"
        else:
            status, error = answer.status, shot.wrong(answer, request_id)
    except OSError as problem:
        error = type(problem).__name__
    return _outcome(started_s, status, shot, error, request_id)


def pieces(body: bytes, count: int) -> Sequence[bytes]:
    """A body in at most so many pieces, none empty."""
    size = max(1, -(-len(body) // count))
    return [body[i : i + size] for i in range(0, len(body), size)]


def parse_answer(wire: bytes) -> Answer | None:
    """An answer that ended with its connection; None where it is not whole."""
    head, found, body = wire.partition(b"\r\n\r\n")
    if not found:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    if len(body) != int(headers.get("content-length", -1)):
        return None
    return Answer(int(first.split()[1]), headers, body)


async def _connected(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    address = urlsplit(url)
    return await asyncio.open_connection(address.hostname, address.port)


def _outcome(
    started_s: float, status: int, shot: Shot, error: str | None, request_id: str
) -> Outcome:
    images = sum(shot.images.values())
    ended_s = time.perf_counter()
    return Outcome(started_s, started_s, ended_s, status, images, error, request_id)
