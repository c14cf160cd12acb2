"""Half an hour of everything: all forms and sizes, broken images, rude clients, probes."""

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.endurance.broken import bad_files, broken_shots
from benchmarks.endurance.corpus import (
    DEEPSTACK_CONF,
    DEFAULT_CONF,
    LEAST_CONF,
    Expected,
    Picture,
    corpus,
    expected,
)
from benchmarks.endurance.forms import (
    BadFile,
    annotated,
    deepstack,
    document,
    form,
    infer,
    many_boxes,
    raw,
)
from benchmarks.endurance.overload import spread_ms
from benchmarks.endurance.plan import Plan
from benchmarks.endurance.probe import (
    Sample,
    constant,
    flat_memory,
    memory_slope,
    sample,
    sampled,
    series,
)
from benchmarks.endurance.process import Scrape, Server, serving
from benchmarks.endurance.rude import (
    LEFT,
    leaves_in_answer,
    leaves_in_body,
    leaves_waiting,
    sends_slowly,
)
from benchmarks.endurance.shots import Ledger, Shot
from benchmarks.endurance.traffic import arrive, saturation, took_ms, under_way
from benchmarks.endurance.verdict import Criterion, Report, none_of
from benchmarks.serving.http_client import Client, Request, request_wire
from benchmarks.serving.load import Outcome, poisson, send

SHARE = 0.7  # of the mix' own saturation
PROBE_EVERY_S = 5.0
PROBES = ("/health/live", "/health/ready", "/health", "/metrics", "/v2/health/ready")
MOST_IN_FORM = 8
# Weights of 100.
POLITE = {
    "raw": 43, "many boxes": 10, "form": 12, "json": 8, "annotated": 5, "infer, JSON": 3,
    "infer, binary": 4, "deepstack": 5, "broken": 5,
}  # fmt: skip
RUDE = {"leaves in body": 1.5, "leaves waiting": 1.5, "leaves in answer": 1, "slow": 1}
# What a rude client asks for; in the midst of an answer one can leave only where it is long.
RUDE_SHOTS = {
    "leaves in body": POLITE,
    "leaves waiting": POLITE,
    "leaves in answer": {"many boxes": 1, "annotated": 1},
    "slow": POLITE,
}
BAD_IN_FORM = 0.25  # of forms and documents hold a file that can't be read
OF_A_KIND = 16

Choose = Callable[[Mapping[str, float]], Shot]


async def mixed(plan: Plan) -> Report:
    """Runs it against a server of its own."""
    chance = random.Random(plan.seed)
    async with serving(plan.flags, plan.python) as server:
        pictures = corpus(plan.pictures)
        known = await expected(server, pictures, (DEFAULT_CONF, DEEPSTACK_CONF, LEAST_CONF))
        model = (await server.health())["model"]
        choose = mix(pictures, known, model, chance)
        ids = (f"{plan.seed}-{i}" for i in itertools.count())
        best = await saturation(
            server.url, lambda: choose(POLITE).request(next(ids)), plan.saturation_s
        )
        rate = SHARE * best.requests / best.seconds
        await server.quiet()
        before, counted_before = sample(server.pid), await server.scrape()
        sent: Counter[str] = Counter()
        outcomes: list[Outcome] = []
        ledger, wrong = Ledger(), list[str]()
        async with (
            sampled(server.pid) as samples,
            probing(server) as failed_probes,
            Client(server.url) as client,
            under_way() as start,
        ):

            async def one(intended_s: float) -> Outcome:
                (kind,) = chance.choices([*POLITE, *RUDE], [*POLITE.values(), *RUDE.values()])
                shot = choose(RUDE_SHOTS.get(kind, {kind: 1}))
                sent[kind] += 1
                outcome = await ask(client, server.url, kind, shot, next(ids), intended_s, chance)
                outcomes.append(outcome)
                if said := book(ledger, kind, shot, outcome):
                    wrong.append(said)
                return outcome

            arrivals = poisson(rate, plan.mixed_s, plan.seed)
            await arrive(arrivals, lambda intended_s: start(one(intended_s)))
        is_quiet = await server.quiet()
        counted, after = await server.scrape(), await settled(server, before.files)
        queue = (await server.health())["queue_images"]
    images = increase(counted_before, counted, "detector_images_total", ("outcome",))
    requests = increase(counted_before, counted, "detector_requests_total", ("route", "status"))
    differences = ledger.differences(
        {outcome: n for (outcome,), n in images.items()},
        {(route, status): n for (route, status), n in requests.items()},
    )
    server_errors = {k: n for k, n in requests.items() if n and k[1][0] == "5" and k[1] != "503"}
    line = memory_slope(samples)
    figures: dict[str, Any] = {
        "minutes": plan.mixed_s / 60,
        "saturation_requests_per_s": best.requests / best.seconds,
        "offered_requests_per_s": rate,
        "requests_by_kind": dict(sent),
        "answers": dict(Counter(str(e.status) if e.status else e.error or "" for e in outcomes)),
        "images_answered": dict(ledger.images),
        "images_of_clients_that_left": dict(ledger.loose_images),
        "images_counted_by_server": {o: int(n) for (o,), n in images.items() if n},
        "answered_200_ms": spread_ms(took_ms([e for e in outcomes if e.good])),
        "memory_mb_per_hour": [line.per_unit, line.error] if line else [],
        "wrong_at_saturation": best.wrong,
    }
    criteria = [
        none_of(
            "no 5xx other than 503, by the server's own count",
            [f"{route} {status}: {n:.0f}" for (route, status), n in server_errors.items()],
        ),
        none_of("every answer right: status, order, size and number of boxes", wrong),
        Criterion("every request has one outcome", f"{len(outcomes)} of {sent.total()}",
                  len(outcomes) == sent.total()),
        none_of("every accepted image answered exactly once: clients' and server's counts agree",
                differences),
        none_of("probes and scrapes answered", failed_probes),
        flat_memory(samples),
        constant(before, samples, after),
        Criterion("queue empty at the end", f"{queue} images", is_quiet and queue == 0),
    ]  # fmt: skip
    return Report("mixed", criteria, figures | {"process": series(samples)}, tuple(figures))


def mix(pictures: Sequence[Picture], known: Expected, model: str, chance: random.Random) -> Choose:
    """Makes requests of every kind; gives a function that takes one of a kind chosen by weight."""
    jpeg = next(each for each in pictures if each.media_type == "image/jpeg")
    bad = bad_files(jpeg)
    several = [each for each in pictures if each.hw[0] * each.hw[1] <= 640 * 480]

    def one() -> Picture:
        return chance.choice(several)

    def some(most: int = MOST_IN_FORM) -> list[Picture]:
        return chance.choices(several, k=chance.randint(1, most))

    def some_with_bad() -> list[Picture | BadFile]:
        chosen: list[Picture | BadFile] = [*some(MOST_IN_FORM - 1)]
        if chance.random() < BAD_IN_FORM:
            chosen.insert(chance.randint(0, len(chosen)), chance.choice(bad))
        return chosen

    def many(make: Callable[[], Shot]) -> list[Shot]:
        return [make() for _ in range(OF_A_KIND)]

    # Made once: the generator should spend its time on sending.
    shots: dict[str, list[Shot]] = {
        "raw": [raw(each, known) for each in pictures],
        "many boxes": [many_boxes(each, known) for each in several],
        "form": many(lambda: form(some_with_bad(), known)),
        "json": many(lambda: document(some_with_bad(), known)),
        "annotated": [annotated(each) for each in several],
        "infer, JSON": many(lambda: infer(model, some(3), known, binary=False)),
        "infer, binary": many(lambda: infer(model, some(3), known, binary=True)),
        "deepstack": many(lambda: deepstack(one(), known)),
        "broken": broken_shots(jpeg),
    }

    def choose(weights: Mapping[str, float]) -> Shot:
        (kind,) = chance.choices(list(weights), list(weights.values()))
        return chance.choice(shots[kind])

    return choose


async def ask(
    client: Client,
    url: str,
    kind: str,
    shot: Shot,
    request_id: str,
    intended_s: float,
    chance: random.Random,
) -> Outcome:
    """One request of a polite or rude client."""
    if kind == "leaves in body":
        return await leaves_in_body(client, shot, request_id, chance.uniform(0.01, 0.3))
    if kind == "leaves waiting":
        return await leaves_waiting(client, shot, request_id, chance.uniform(0.001, 0.05))
    if kind == "leaves in answer":
        return await leaves_in_answer(url, shot, request_id)
    if kind == "slow":
        return await sends_slowly(url, shot, request_id, chance.uniform(0.5, 4))
    return await send(client, shot.request(request_id), intended_s)


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


async def settled(server: Server, files: int, limit_s: float = 15.0) -> Sample:
    """A sample when as few files are open as before, or when the time is over."""
    end_s = time.perf_counter() + limit_s
    looked = sample(server.pid)
    while looked.files > files and time.perf_counter() < end_s:
        await asyncio.sleep(0.1)
        looked = sample(server.pid)
    return looked
