"""Two ways for a request to end early: a part of it fails, or its client leaves."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from starlette.types import Receive

Result = TypeVar("Result")


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
async def leaving_with_client(receive: Receive) -> AsyncIterator[None]:
    """Ends the block when the client disconnects; the request's body must be read already.

    Raises:
        ClientLeft: it did.
    """
    parent = asyncio.current_task()
    assert parent is not None
    left = False

    async def watch() -> None:
        nonlocal left
        while (await receive())["type"] != "http.disconnect":
            pass
        left = True
        parent.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        # Our own cancellation is ours to take back; one from outside goes on.
        if left and parent.uncancel() == 0:
            raise ClientLeft from None
        raise
    finally:
        watcher.cancel()
