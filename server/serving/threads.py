"""The threads and tasks that work for requests, and who goes first where CPUs are short."""

import asyncio
import contextvars
import os
import threading
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

Params = ParamSpec("Params")
Result = TypeVar("Result")
# Inferences take all CPUs; refusals and health should not have to wait for their turn, nor behind
# the images of a queue that fills up, which are all decoded at once.
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
    work: Callable[Params, Result],
    *args: Params.args,
    **kwargs: Params.kwargs,
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
    except asyncio.CancelledError as cancelled:
        # Its traceback holds the group, which holds it: the images would wait for the collector.
        raise cancelled.with_traceback(None)  # noqa: B904  # it is the same
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
