import asyncio
import gc
import weakref

import pytest

from server.serving.threads import together


class Body:
    """What a request holds."""


async def cut_off() -> weakref.ref[Body]:
    body = Body()
    begun = asyncio.Event()

    async def wait() -> None:
        begun.set()
        await asyncio.Event().wait()

    async def detect(held: Body) -> None:
        await together([wait(), wait()])
        assert held

    request = asyncio.create_task(detect(body))
    await begun.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    return weakref.ref(body)


def test_a_request_that_is_cut_off_leaves_nothing_for_the_collector() -> None:
    gc.collect()
    gc.disable()
    try:
        left = asyncio.run(cut_off())
        assert left() is None
    finally:
        gc.enable()
