import asyncio
import threading

import pytest
from starlette.types import Message

from server.api.detection import leaving_with_client
from server.serving.threads import ClientLeft, together

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def value(result: int, after: asyncio.Event | None = None) -> int:
    if after is not None:
        await after.wait()
    return result


async def test_together_keeps_the_order() -> None:
    last_is_done = asyncio.Event()

    async def last() -> int:
        last_is_done.set()
        return 2

    assert await together([value(1, last_is_done), last()]) == [1, 2]


async def test_the_first_failure_ends_the_others_and_keeps_its_cause() -> None:
    cause = ValueError("cause")
    ended = asyncio.Event()

    async def fails() -> int:
        raise KeyError("first") from cause

    async def waits() -> int:
        try:
            return await value(1, asyncio.Event())
        finally:
            ended.set()

    with pytest.raises(KeyError) as failed:
        await together([waits(), fails()])
    assert failed.value.__cause__ is cause
    assert ended.is_set()


async def test_a_client_that_leaves_ends_the_work() -> None:
    leave = asyncio.Event()

    async def receive() -> Message:
        await leave.wait()
        return {"type": "http.disconnect"}

    async def work() -> None:
        async with leaving_with_client(receive):
            leave.set()
            await asyncio.Event().wait()

    with pytest.raises(ClientLeft):
        await work()


async def test_work_is_not_begun_for_a_client_that_left_right_behind_its_request() -> None:
    async def receive() -> Message:
        return {"type": "http.disconnect"}

    begun = False
    with pytest.raises(ClientLeft):
        async with leaving_with_client(receive):
            begun = True
    assert not begun
    current = asyncio.current_task()
    assert current is not None
    assert current.cancelling() == 0


async def test_a_thread_that_notices_first_ends_the_work_the_same_way() -> None:
    leave = asyncio.Event()

    async def receive() -> Message:
        await leave.wait()
        return {"type": "http.disconnect"}

    async def thread(left: threading.Event) -> None:
        leave.set()
        while not left.is_set():  # noqa: ASYNC110  # a thread's event has none for the loop
            await asyncio.sleep(0)
        raise ClientLeft

    with pytest.raises(ClientLeft):
        async with leaving_with_client(receive) as left:
            await together([thread(left), value(1, asyncio.Event())])
    current = asyncio.current_task()
    assert current is not None
    assert current.cancelling() == 0


async def test_work_that_is_done_is_not_disturbed() -> None:
    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async with leaving_with_client(receive):
        await asyncio.sleep(0)
    current = asyncio.current_task()
    assert current is not None
    assert current.cancelling() == 0


async def test_a_cancellation_from_outside_goes_on() -> None:
    inside = asyncio.Event()

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def work() -> None:
        async with leaving_with_client(receive):
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
