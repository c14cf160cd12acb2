"""Two ways for a request to end early: a part of it fails, or its client leaves."""

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from starlette.types import Receive

Result = TypeVar("Result")
# Of the event loop: it reads the end of the connection, the protocol notes it, the watcher is woken
# and ends the request. One more, as their order within a turn is not ours.
TURNS_TO_LEAVE = 4


class ClientLeft(Exception):
    """The connection closed before the answer was ready; nobody will read one."""


async def together(works: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Runs all at once; the first failure ends the others and is raised as it is."""
    first, *others = works = list(works)
    if not others:
        return [await first]
    tasks: list[asyncio.Task[Result]] = []
    failure: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
    except BaseExceptionGroup as failures:
        failure = failures.exceptions[0]
        failures.__traceback__ = None
    # Raised out here, so that its own cause is its context and not the group.
    if failure is not None:
        try:
            raise failure
        finally:
            # A traceback holds its frames: what they hold of it in turn would stay in memory.
            del failure, tasks
    return [task.result() for task in tasks]


@asynccontextmanager
async def leaving_with_client(receive: Receive) -> AsyncIterator[threading.Event]:
    """Ends the block when the client disconnects; the request's body must be read already.

    Not even begins it when the client closed the connection right behind its request.

    Yields:
        Is set as soon as the client has left; for threads, which a cancellation reaches late.

    Raises:
        ClientLeft: it did.
    """
    parent = asyncio.current_task()
    assert parent is not None
    left = threading.Event()

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        left.set()
        parent.cancel()

    watcher = asyncio.create_task(watch())
    try:
        # What was read so far came before the end of the connection, which may be there to be read.
        for _ in range(TURNS_TO_LEAVE):
            await asyncio.sleep(0)
        yield left
    except (asyncio.CancelledError, ClientLeft):
        # Our own cancellation is ours to take back; one from outside goes on.
        if left.is_set() and parent.uncancel() == 0:
            raise ClientLeft from None
        raise
    finally:
        watcher.cancel()
