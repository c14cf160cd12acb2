"""A request ends early when its client leaves."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.types import Receive

from server.serving.threads import ClientLeft

# Of the event loop: it reads the end of the connection, the protocol notes it, the watcher is woken
# and ends the request. One more, as their order within a turn is not ours.
TURNS_TO_LEAVE = 4


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
