"""Load on a server that takes images: open-loop (a rate) and closed-loop (a number of clients).

Open-loop arrivals do not wait for answers, and latency counts from the moment a request should
have been sent: a server that stalls pays for every request that came meanwhile (no coordinated
omission). Closed-loop clients send the next request when they have the answer to the last.

    load = await closed_load(url, requests, clients=32, seconds=10, server_pid=process.pid)
    print(summarize(load))  # benchmarks.load.summary
"""

import asyncio
import itertools
import math
import random
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import uvloop

from benchmarks.load.http_client import Client, NoAnswer, Request
from benchmarks.load.usage import Usage, tree_usage

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request. Times are seconds of `time.perf_counter`.

    Attributes:
        intended_s: when it should have been sent; latency counts from here.
        started_s: when it was.
        ended_s: when its answer was complete, or given up.
        status: of HTTP; 0 where there was no answer.
        images: in the request.
        error: why there was no answer, or what the check found wrong with it.
        name: the request's.
    """

    intended_s: float
    started_s: float
    ended_s: float
    status: int
    images: int
    error: str | None
    name: str = ""

    @property
    def good(self) -> bool:
        """Answered with 200, and the check found nothing."""
        return self.status == 200 and self.error is None


@dataclass(frozen=True, slots=True)
class Load:
    """All outcomes, and the part of the time that counts.

    Attributes:
        outcomes: in the order of their ends, those outside of the window included.
        window_s: its begin and end, seconds of `time.perf_counter`.
        open_loop: arrivals did not wait for answers.
        generator_cpu_s: CPU seconds of this process in the window.
        server: the server's use at both ends of the window, where its pid was given.
    """

    outcomes: list[Outcome]
    window_s: tuple[float, float]
    open_loop: bool
    generator_cpu_s: float
    server: tuple[Usage, Usage] | None


def in_turn(requests: Sequence[Request]) -> Callable[[], Request]:
    """Hands out the requests one after the other, again and again."""
    return itertools.cycle(requests).__next__


def uniform(rate: float, seconds: float) -> list[float]:
    """Arrivals at equal distances: seconds from the start, ascending."""
    return [i / rate for i in range(math.ceil(rate * seconds))]


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    """Arrivals of many independent clients: `rate` a second on average, in [0, seconds)."""
    chance = random.Random(seed)
    arrivals: list[float] = []
    at_s = chance.expovariate(rate)
    while at_s < seconds:
        arrivals.append(at_s)
        at_s += chance.expovariate(rate)
    return arrivals


async def closed_load(
    url: str,
    requests: Sequence[Request],
    *,
    clients: int,
    seconds: float,
    warm_s: float = 1.0,
    server_pid: int | None = None,
) -> Load:
    """`closed_loop` with the requests in turn, on connections of its own."""
    async with Client(url) as client:
        return await closed_loop(
            client,
            in_turn(requests),
            clients=clients,
            seconds=seconds,
            warm_s=warm_s,
            server_pid=server_pid,
        )


async def poisson_load(
    url: str,
    requests: Sequence[Request],
    *,
    rate: float,
    seed: int,
    seconds: float,
    warm_s: float = 0.0,
    server_pid: int | None = None,
) -> Load:
    """`open_loop` with the requests in turn at `poisson` arrivals, on connections of its own."""
    async with Client(url) as client:
        return await open_loop(
            client,
            in_turn(requests),
            poisson(rate, warm_s + seconds, seed),
            seconds=seconds,
            warm_s=warm_s,
            server_pid=server_pid,
        )


async def closed_loop(
    client: Client,
    pick: Callable[[], Request],
    *,
    clients: int,
    seconds: float,
    warm_s: float = 1.0,
    server_pid: int | None = None,
) -> Load:
    """`clients` clients, each with one request under way at any time.

    Args:
        client: where to.
        pick: the next request.
        clients: how many, >= 1.
        seconds: length of the window that counts.
        warm_s: how long the load runs before it.
        server_pid: whose CPU and memory to measure.
    """
    outcomes: list[Outcome] = []
    stop = False

    async def one_client() -> None:
        while not stop:
            outcomes.append(await send(client, pick(), time.perf_counter()))

    tasks = [asyncio.create_task(one_client()) for _ in range(clients)]
    try:
        await asyncio.sleep(warm_s)
        edges = _Edges(server_pid)
        await asyncio.sleep(seconds)
        window_s, generator_s, server = edges.end()
        stop = True
        await asyncio.gather(*tasks)
    finally:
        await _end(tasks)
    return Load(outcomes, window_s, False, generator_s, server)


async def open_loop(
    client: Client,
    pick: Callable[[], Request],
    arrivals: Iterable[float],
    *,
    seconds: float,
    warm_s: float = 0.0,
    server_pid: int | None = None,
) -> Load:
    """Requests at given times, whatever became of those before; then waits for all answers.

    Args:
        client: where to.
        pick: the next request.
        arrivals: seconds from the start, ascending, in [0, warm_s + seconds).
        seconds: length of the window that counts.
        warm_s: how long the load runs before it.
        server_pid: whose CPU and memory to measure.
    """
    outcomes: list[Outcome] = []

    async def one_request(intended_s: float) -> None:
        outcomes.append(await send(client, pick(), intended_s))

    began_s = time.perf_counter()
    tasks: set[asyncio.Task[None]] = set()

    def launch(intended_s: float) -> None:
        task = asyncio.create_task(one_request(intended_s))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    arriving = asyncio.create_task(arrive(arrivals, launch, began_s))
    try:
        await asyncio.sleep(warm_s)
        edges = _Edges(server_pid)
        await asyncio.sleep(began_s + warm_s + seconds - time.perf_counter())
        _, generator_s, server = edges.end()
        # As it was meant, like the arrivals: they are sorted by it, not by when a timer fired.
        window_s = began_s + warm_s, began_s + warm_s + seconds
        await arriving
        await asyncio.gather(*tasks)
    finally:
        await _end([arriving, *tasks])
    return Load(outcomes, window_s, True, generator_s, server)


async def arrive(
    arrivals: Iterable[float], launch: Callable[[float], object], began_s: float
) -> None:
    """Calls `launch` at given times; at once where it is late already: none is skipped.

    Args:
        arrivals: seconds from `began_s`, ascending.
        launch: takes the intended time, in seconds of `time.perf_counter`.
        began_s: of `time.perf_counter`.
    """
    for at_s in arrivals:
        if (wait_s := began_s + at_s - time.perf_counter()) > 0:
            await asyncio.sleep(wait_s)
        launch(began_s + at_s)


async def send(client: Client, request: Request, intended_s: float) -> Outcome:
    """One request and what became of it; never raises for what the server did."""
    started_s = time.perf_counter()
    status, error = 0, None
    try:
        answer = await client.ask(request)
    except NoAnswer as no_answer:
        ended_s, error = time.perf_counter(), str(no_answer)
    else:
        ended_s, status = time.perf_counter(), answer.status
        if request.check is not None and (status == 200 or request.check_all):
            error = request.check(answer)
    return Outcome(intended_s, started_s, ended_s, status, request.images, error, request.name)


def run_light(work: Coroutine[Any, Any, Result]) -> Result:
    """asyncio.run on uvloop: half the generator's CPU time."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


class _Edges:
    """The two ends of a window."""

    def __init__(self, server_pid: int | None) -> None:
        self._pid = server_pid
        self._server = tree_usage(server_pid) if server_pid else None
        self._cpu_s = time.process_time()
        self._begin_s = time.perf_counter()

    def end(self) -> tuple[tuple[float, float], float, tuple[Usage, Usage] | None]:
        window_s = self._begin_s, time.perf_counter()
        cpu_s = time.process_time() - self._cpu_s
        server = (self._server, tree_usage(self._pid)) if self._pid and self._server else None
        return window_s, cpu_s, server


async def _end(tasks: Iterable[asyncio.Task[None]]) -> None:
    # Only where something failed is anything still running here.
    running = [task for task in tasks if not task.done()]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
