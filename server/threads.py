"""The threads that work for requests, and who of them goes first where CPUs are short."""

import asyncio
import contextvars
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import ParamSpec, TypeVar

Given = ParamSpec("Given")
Result = TypeVar("Result")
# Model calls take all CPUs; refusals and health should not have to wait for their turn, nor behind
# the pictures of a queue that fills up, which are all decoded at once.
MODEL_NICENESS = 5
DECODE_NICENESS = 2
MAX_NICENESS = 19  # that there is


def nice_pool(threads: int, name: str, niceness: int) -> ThreadPoolExecutor:
    """Threads that let others of the process go first.

    Args:
        threads: how many, >= 1.
        name: what they are called.
        niceness: how much nicer than the process, >= 0.
    """
    return ThreadPoolExecutor(threads, name, be_nice, (niceness,))


async def on_pool(
    pool: ThreadPoolExecutor,
    work: Callable[Given, Result],
    *args: Given.args,
    **kwargs: Given.kwargs,
) -> Result:
    """Runs work on one of the threads, with the log context of the request."""
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(
        pool, lambda: context.run(work, *args, **kwargs)
    )


async def on_pool_until(
    pool: ThreadPoolExecutor, work: Callable[[], Result], at_end: Callable[[], None]
) -> Result:
    """Runs work as `on_pool` does.

    Args:
        pool: the threads.
        work: what to run.
        at_end: called once, when the work has ended, or can't begin any more. Whoever waits for the
            work may have left long before.
    """

    def begin() -> Future[Result]:
        running = pool.submit(contextvars.copy_context().run, work)
        running.add_done_callback(lambda _: at_end())
        return running

    # Held by no frame of a failure's traceback, or the failure would hold itself, and the file that
    # could not be decoded.
    return await asyncio.wrap_future(begin())


def be_nice(by: int) -> None:
    """Lets threads that are less nice go first where CPUs are short."""
    thread = threading.get_native_id()
    niceness = os.getpriority(os.PRIO_PROCESS, thread) + by
    with suppress(OSError):  # a sandbox may forbid it, and the pool would be broken for good
        os.setpriority(os.PRIO_PROCESS, thread, min(niceness, MAX_NICENESS))
