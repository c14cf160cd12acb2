"""Arrivals that wait for nobody, and how fast a server can go."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager

from benchmarks.load.http_client import Client, Request
from benchmarks.load.loops import Outcome, closed_loop, send
from benchmarks.load.summary import Summary, percentile, summarize

SATURATING_CLIENTS = 16


@asynccontextmanager
async def under_way() -> AsyncIterator[
    Callable[[Coroutine[object, object, Outcome]], asyncio.Task[Outcome]]
]:
    """Gives a function that starts a request; none is left at the end of the block."""
    tasks: set[asyncio.Task[Outcome]] = set()

    def start(work: Coroutine[object, object, Outcome]) -> asyncio.Task[Outcome]:
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return task

    try:
        yield start
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def saturation(
    url: str,
    pick: Callable[[], Request],
    seconds: float,
    *,
    clients: int = SATURATING_CLIENTS,
    warm_s: float = 1.0,
) -> Summary:
    """What the server does when it always has something to do."""
    async with Client(url) as client:
        load = await closed_loop(client, pick, clients=clients, seconds=seconds, warm_s=warm_s)
    return summarize(load)


async def lone_latency_s(url: str, pick: Callable[[], Request], count: int) -> list[Outcome]:
    """One request after the other, nothing else from us."""
    async with Client(url) as client:
        return [await send(client, pick(), time.perf_counter()) for _ in range(count)]


def took_ms(outcomes: Sequence[Outcome]) -> list[float]:
    """From send to answer, ascending."""
    return sorted(1e3 * (each.ended_s - each.started_s) for each in outcomes)


def median_ms(outcomes: Sequence[Outcome]) -> float:
    """From send to answer; NaN of none."""
    return percentile(took_ms(outcomes), 50)


def spread_ms(ascending: Sequence[float]) -> dict[str, float]:
    """Percentiles for the table; none of nothing."""
    if not ascending:
        return {}
    return {f"p{each}": percentile(ascending, each) for each in (50, 99)} | {"max": ascending[-1]}
