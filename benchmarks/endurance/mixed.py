"""Half an hour of everything: all forms and sizes, broken images, rude clients, probes."""

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from benchmarks.endurance.corpus import (
    DEEPSTACK_CONF,
    DEFAULT_CONF,
    LEAST_CONF,
    corpus,
    expected,
)
from benchmarks.endurance.mix import POLITE, RUDE, RUDE_SHOTS, Choose, ask, mix
from benchmarks.endurance.plan import Plan
from benchmarks.endurance.probe import (
    Sample,
    constant,
    flat_memory,
    memory_slope,
    sample,
    sampled,
    series,
    settled,
)
from benchmarks.endurance.process import Scrape, Server, serving
from benchmarks.endurance.rude import LEFT
from benchmarks.endurance.shots import Ledger, Shot
from benchmarks.endurance.traffic import saturation, spread_ms, took_ms, under_way
from benchmarks.endurance.verdict import Criterion, Report, none_of
from benchmarks.load.http_client import Client, Request, request_wire
from benchmarks.load.loops import Outcome, arrive, poisson, send
from benchmarks.load.summary import Summary

SHARE = 0.7  # of the mix' own saturation
PROBE_EVERY_S = 5.0
PROBES = ("/health/live", "/health/ready", "/health", "/metrics", "/v2/health/ready")
IMAGES, REQUESTS = "detector_images_total", "detector_requests_total"


@dataclass(slots=True)
class Seen:
    """What clients saw, as it came.

    Attributes:
        sent: requests by kind.
        outcomes: of all that ended.
        ledger: what the server must have counted.
        wrong: with answers, in words.
        failed_probes: in words.
        samples: of the process.
    """

    sent: Counter[str] = field(default_factory=Counter)
    outcomes: list[Outcome] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)
    wrong: list[str] = field(default_factory=list)
    failed_probes: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Edge:
    """The server at rest, before or after.

    Attributes:
        process: seen from outside.
        metrics: of its own.
        queue_images: that wait, which should be none.
    """

    process: Sample
    metrics: Scrape
    queue_images: int


async def mixed(plan: Plan) -> Report:
    """Runs it against a server of its own."""
    chance = random.Random(plan.seed)
    async with serving(plan.flags, plan.python) as server:
        images = corpus(plan.images)
        known = await expected(server, images, (DEFAULT_CONF, DEEPSTACK_CONF, LEAST_CONF))
        choose = mix(images, known, (await server.health())["model"], chance)
        ids = (f"{plan.seed}-{i}" for i in itertools.count())
        best = await saturation(
            server.url, lambda: choose(POLITE).request(next(ids)), plan.saturation_s
        )
        rate = SHARE * served_per_s(best)
        before = await at_rest(server)
        arrivals = poisson(rate, plan.mixed_s, plan.seed)
        seen = await offer(server, choose, ids.__next__, arrivals, chance)
        after = await at_rest(server, before.process.files)
    figures = {
        "minutes": plan.mixed_s / 60,
        "saturation_requests_per_s": served_per_s(best),
        "wrong_at_saturation": best.wrong,
        "offered_requests_per_s": rate,
    }
    return report(seen, before, after, figures)


async def offer(
    server: Server,
    choose: Choose,
    next_id: Callable[[], str],
    arrivals: Sequence[float],
    chance: random.Random,
) -> Seen:
    """Sends requests of all kinds at their times, while probes come and memory is looked at."""
    seen = Seen()
    async with (
        sampled(server.pid) as seen.samples,
        probing(server) as seen.failed_probes,
        Client(server.url) as client,
        under_way() as start,
    ):

        async def one(intended_s: float) -> Outcome:
            (kind,) = chance.choices([*POLITE, *RUDE], [*POLITE.values(), *RUDE.values()])
            shot = choose(RUDE_SHOTS.get(kind, {kind: 1}))
            seen.sent[kind] += 1
            outcome = await ask(client, server.url, kind, shot, next_id(), intended_s, chance)
            seen.outcomes.append(outcome)
            if said := book(seen.ledger, kind, shot, outcome):
                seen.wrong.append(said)
            return outcome

        await arrive(arrivals, lambda intended_s: start(one(intended_s)), time.perf_counter())
    return seen


async def at_rest(server: Server, most_files: int | None = None) -> Edge:
    """Waits until nothing is under way, and no more than `most_files` are open; then looks."""
    await server.quiet()
    process = sample(server.pid) if most_files is None else await settled(server.pid, most_files)
    return Edge(process, await server.scrape(), (await server.health())["queue_images"])


def served_per_s(best: Summary) -> float:
    """Requests that were not refused for a while."""
    return (best.requests - best.statuses.get("503", 0)) / best.seconds


def report(seen: Seen, before: Edge, after: Edge, figures: Mapping[str, Any]) -> Report:
    """What was seen beside what the server counted."""
    images = increase(before.metrics, after.metrics, IMAGES, ("outcome",))
    requests = increase(before.metrics, after.metrics, REQUESTS, ("route", "status"))
    differences = seen.ledger.differences(
        {outcome: n for (outcome,), n in images.items()},
        {(route, status): n for (route, status), n in requests.items()},
    )
    failed = [f"{r} {s}: {n:.0f}" for (r, s), n in requests.items() if n and is_fault(s)]
    line, outcomes, sent = memory_slope(seen.samples), seen.outcomes, seen.sent.total()
    shown = {
        **figures,
        "requests_by_kind": dict(seen.sent),
        "answers": dict(Counter(str(e.status) if e.status else e.error or "" for e in outcomes)),
        "images_answered": dict(seen.ledger.images),
        "images_of_clients_that_left": dict(seen.ledger.loose_images),
        "images_counted_by_server": {o: int(n) for (o,), n in images.items() if n},
        "answered_200_ms": spread_ms(took_ms([e for e in outcomes if e.good])),
        "memory_mb_per_hour": [line.per_unit, line.error] if line else [],
    }
    criteria = [
        none_of("no 5xx other than 503, by the server's own count", failed),
        none_of("every answer right: status, order, size and number of boxes", seen.wrong),
        Criterion(
            "every request has one outcome",
            f"{len(outcomes)} of {sent}",
            len(outcomes) == sent,
        ),
        none_of(
            "every accepted image answered exactly once: clients' and server's counts agree",
            differences,
        ),
        none_of("probes and scrapes answered", seen.failed_probes),
        flat_memory(seen.samples),
        constant(before.process, seen.samples, after.process),
        Criterion(
            "queue empty at the end", f"{after.queue_images} images", after.queue_images == 0
        ),
    ]
    return Report("mixed", criteria, shown | {"process": series(seen.samples)}, tuple(shown))


def is_fault(status: str) -> bool:
    """A 5xx that no server should answer."""
    return status.startswith("5") and status != "503"


def book(ledger: Ledger, kind: str, shot: Shot, outcome: Outcome) -> str | None:
    """Books an outcome; says what was wrong with it."""
    if outcome.status:
        ledger.answered(shot, outcome.status)
        return f"{kind}: {outcome.error}" if outcome.error else None
    ledger.left(shot)
    if outcome.error == LEFT and kind in RUDE:
        return None
    return f"{kind}, {shot.kind}: no answer, {outcome.error}"


def increase(
    before: Scrape, after: Scrape, name: str, labels: tuple[str, ...]
) -> dict[tuple[str, ...], float]:
    """How much each series of a counter grew, by the values of its labels in this order."""
    grown = {}
    for key, value in after.get(name, {}).items():
        values = dict(key)
        by = tuple(values[label] for label in labels)
        grown[by] = value - before.get(name, {}).get(key, 0.0)
    return grown


@asynccontextmanager
async def probing(server: Server) -> AsyncIterator[list[str]]:
    """Asks health and metrics all the time; gives what went wrong."""
    failed: list[str] = []

    async def probe() -> None:
        async with Client(server.url, timeout_s=30) as client:
            requests = [Request(request_wire("GET", path), 0, name=path) for path in PROBES]
            while True:
                for request in requests:
                    outcome = await send(client, request, time.perf_counter())
                    if not outcome.good:
                        failed.append(f"{request.name}: {outcome.status} {outcome.error or ''}")
                await asyncio.sleep(PROBE_EVERY_S)

    task = asyncio.create_task(probe())
    try:
        yield failed
    finally:
        task.cancel()
        await asyncio.wait([task])
