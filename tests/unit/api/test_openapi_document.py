import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from server.api.openapi import routes

LIMIT_S = 10
pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def asking(
    describe: Callable[[], dict[str, Any]],
    on_thread: Callable[[Callable[[], bytes]], Awaitable[bytes]] = asyncio.to_thread,
) -> httpx.AsyncClient:
    app = FastAPI(openapi_url=None)
    app.include_router(routes(describe, on_thread))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


async def test_the_document_is_written_once_while_the_event_loop_goes_on() -> None:
    begun, may_end, times = threading.Event(), threading.Event(), []

    def describe() -> dict[str, Any]:
        times.append(threading.current_thread())
        begun.set()
        assert may_end.wait(LIMIT_S)
        return {"openapi": "3.1.0", "text": "x" * 200_000}

    async with asking(describe) as client:
        asked = [asyncio.create_task(client.get("/openapi.json")) for _ in range(3)]
        # Would never come to an end, were it written on the event loop.
        assert await asyncio.to_thread(begun.wait, LIMIT_S)
        asked[0].cancel()
        may_end.set()
        answers = await asyncio.gather(*asked[1:])
        answers.append(await client.get("/openapi.json"))
    assert len(times) == 1
    assert times[0] is not threading.current_thread()
    for answer in answers:
        assert answer.headers["content-type"] == "application/json"
        assert len(answer.json()["text"]) == 200_000


async def test_what_failed_is_tried_again() -> None:
    failures = [RuntimeError("cannot start new thread")]

    async def on_thread(work: Callable[[], bytes]) -> bytes:
        if failures:
            raise failures.pop()
        return work()

    async with asking(lambda: {"openapi": "3.1.0"}, on_thread) as client:
        with pytest.raises(RuntimeError, match="new thread"):
            await client.get("/openapi.json")
        assert (await client.get("/openapi.json")).json() == {"openapi": "3.1.0"}
