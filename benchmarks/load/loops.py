"""Load on a server that takes images: open-loop (a rate) and closed-loop (a number of clients).

Open-loop arrivals do not wait for answers, and latency counts from the moment a request should
have been sent: a server that stalls pays for every request that came meanwhile (no coordinated
omission). Closed-loop clients send the next request when they have the answer to the last.

    load = await closed_load(url, requests, clients=32, seconds=10, server_pid=process.pid)
    print(summarize(load))
"""

import asyncio
import itertools
import math
import random
import time
from collections import Counter
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


@dataclass(frozen=True, slots=True)
class Summary:
    """A load in figures. Latencies are those of good answers; NaN where there are none.

    Attributes:
        seconds: length of the window.
        requests: in the window: by their end in a closed loop, by intended start in an open one.
        images_per_s: of good answers that ended in the window.
        statuses: requests by status, or by the reason why there was no answer.
        wrong: answers that the check found wrong, by what it said.
        late_p99_ms: how much later than intended requests were sent; large values mean that the
            generator and not the server was measured.
        generator_cpus: CPUs that this process used on average.
        server_cpus: CPUs that the server used on average; None where its pid was not given.
        server_cpu_ms_per_image: its CPU time for each good image.
        server_rss_mb, server_pss_mb: at the end of the window, 10^6 bytes.
    """

    seconds: float
    requests: int
    images_per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    statuses: dict[str, int]
    wrong: dict[str, int]
    late_p99_ms: float
    generator_cpus: float
    server_cpus: float | None
    server_cpu_ms_per_image: float | None
    server_rss_mb: float | None
    server_pss_mb: float | None


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


def summarize(load: Load) -> Summary:
    """The figures of a load's window."""
    begin_s, end_s = load.window_s
    seconds = end_s - begin_s
    ended = [each for each in load.outcomes if begin_s <= each.ended_s < end_s]
    counted = ended
    if load.open_loop:
        counted = [each for each in load.outcomes if begin_s <= each.intended_s < end_s]
    good_images = sum(each.images for each in ended if each.good)
    latencies = sorted(1e3 * (each.ended_s - each.intended_s) for each in counted if each.good)
    late = sorted(1e3 * (each.started_s - each.intended_s) for each in counted)
    server_cpu_s = load.server[1].cpu_s - load.server[0].cpu_s if load.server else None
    return Summary(
        seconds=seconds,
        requests=len(counted),
        images_per_s=good_images / seconds,
        p50_ms=percentile(latencies, 50),
        p95_ms=percentile(latencies, 95),
        p99_ms=percentile(latencies, 99),
        max_ms=percentile(latencies, 100),
        statuses=_count(str(e.status) if e.status else e.error or "none" for e in counted),
        wrong=_count(e.error for e in counted if e.status and e.error),
        late_p99_ms=percentile(late, 99),
        generator_cpus=load.generator_cpu_s / seconds,
        server_cpus=None if server_cpu_s is None else server_cpu_s / seconds,
        server_cpu_ms_per_image=(
            1e3 * server_cpu_s / good_images if server_cpu_s is not None and good_images else None
        ),
        server_rss_mb=load.server[1].rss_bytes / 1e6 if load.server else None,
        server_pss_mb=load.server[1].pss_bytes / 1e6 if load.server else None,
    )


def percentile(ascending: Sequence[float], percent: float) -> float:
    """The smallest value that so many percent of all do not exceed (nearest rank)."""
    if not ascending:
        return math.nan
    return ascending[max(0, math.ceil(len(ascending) * percent / 100) - 1)]


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


def _count(words: Iterable[str | None]) -> dict[str, int]:
    return dict(Counter(word for word in words if word).most_common())


async def _end(tasks: Iterable[asyncio.Task[None]]) -> None:
    # Only where something failed is anything still running here.
    running = [task for task in tasks if not task.done()]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
