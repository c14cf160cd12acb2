"""`GET /openapi.json`, written once, beside the requests that are being answered."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import orjson
from fastapi import APIRouter
from starlette.responses import StreamingResponse

PIECE_BYTES = 64 * 1024  # so much of an answer waits for a client that reads slowly


def routes(
    describe: Callable[[], dict[str, Any]],
    on_thread: Callable[[Callable[[], bytes]], Awaitable[bytes]],
) -> APIRouter:
    """The route. FastAPI's own describes on the event loop: 0.1 s in which nothing is answered.

    Args:
        describe: makes the document; called when it is first asked for, and once.
        on_thread: runs that on a thread.
    """
    router = APIRouter(include_in_schema=False)
    writing: asyncio.Future[bytes] | None = None

    async def document() -> StreamingResponse:
        nonlocal writing
        if writing is None or (writing.done() and not _came(writing)):
            writing = asyncio.ensure_future(on_thread(lambda: orjson.dumps(describe())))
        # A client that leaves must not end what others wait for, too.
        content = await asyncio.shield(writing)
        headers = {"Content-Length": str(len(content))}
        return StreamingResponse(_pieces(content), media_type="application/json", headers=headers)

    router.add_api_route("/openapi.json", document, methods=["GET", "HEAD"])
    return router


def _came(writing: asyncio.Future[bytes]) -> bool:
    return not writing.cancelled() and writing.exception() is None


async def _pieces(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), PIECE_BYTES):
        yield content[start : start + PIECE_BYTES]
