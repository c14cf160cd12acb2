"""SIGTERM under load: what was accepted is answered, what was not is told so or never taken."""

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.endurance.corpus import Bounds, Image, corpus
from benchmarks.endurance.forms import form, raw
from benchmarks.endurance.plan import Plan
from benchmarks.endurance.process import Server, serving
from benchmarks.endurance.rude import sends_slowly
from benchmarks.endurance.shots import Shot
from benchmarks.endurance.traffic import spread_ms
from benchmarks.endurance.verdict import Criterion, Report, none_of
from benchmarks.load.http_client import Client
from benchmarks.load.loops import Outcome, send

CLIENTS = 16
SLOW_CLIENTS = 3
SLOW_S = 1.5
BEFORE_S = (0.5, 1.5)  # of load before the signal
AGAIN_S = 0.1  # a client that was refused waits before it tries again
OVER_S = 5.0  # past the drain time, before a server counts as hanging
ANY = Bounds(0, 10_000)  # boxes: what is found is another scenario's question

Fate = Literal["answered", "refused", "not accepted", "failed"]


@dataclass(frozen=True, slots=True)
class Drain:
    """One server's end.

    Attributes:
        outcomes: of all requests, named by id.
        signal_s: when SIGTERM was sent, seconds of `time.perf_counter`.
        known: ids of the requests whose head the server read: it logs each when it is over.
        exit_code: None where it had to be killed.
        exit_s: from the signal to its end.
    """

    outcomes: list[Outcome]
    signal_s: float
    known: AbstractSet[str]
    exit_code: int | None
    exit_s: float


async def drains(plan: Plan) -> Report:
    """Ends as many servers as planned."""
    chance = random.Random(plan.seed)
    images = [each for each in corpus(plan.images) if each.hw[0] <= 720]
    ended = [await one_drain(plan, images, chance, i) for i in range(plan.drains)]
    limit_s = plan.settings.drain_timeout_s
    fates: Counter[Fate] = Counter()
    failures, after_signal = [], Counter[str]()
    for drain in ended:
        for outcome in drain.outcomes:
            fate, why = judge(outcome, drain, limit_s)
            fates[fate] += 1
            if outcome.ended_s >= drain.signal_s:
                after_signal[fate] += 1
            if fate == "failed":
                failures.append(f"{why} ({outcome.ended_s - drain.signal_s:+.2f} s)")
    wrong_ends = [
        f"exit code {drain.exit_code} after {drain.exit_s:.1f} s"
        for drain in ended
        if drain.exit_code != 0 or drain.exit_s > limit_s
    ]
    figures: dict[str, Any] = {
        "drains": len(ended),
        "requests": dict(fates),
        "ended_after_the_signal": dict(after_signal),
        "exit_s": spread_ms(sorted(drain.exit_s for drain in ended)),
    }
    criteria = [
        none_of("every accepted request answered; others 503, or never accepted", failures),
        none_of(f"exit code 0 within drain_timeout_s ({limit_s:g} s)", wrong_ends),
        Criterion(
            "each was caught at work: requests answered after the signal",
            f"{after_signal['answered']}",
            after_signal["answered"] >= len(ended),
        ),
    ]
    return Report("drains", criteria, figures, tuple(figures))


async def one_drain(
    plan: Plan, images: Sequence[Image], chance: random.Random, number: int
) -> Drain:
    """Starts a server, loads it, and ends it in the midst of that."""
    known = {(each.name, 0.25): ANY for each in images}
    shots = [shot_of(chance, images, known) for _ in range(32)]
    ids = (f"{number}-{i}" for i in itertools.count())
    outcomes: list[Outcome] = []
    async with serving(plan.flags, plan.python) as server, Client(server.url) as client:
        gone = asyncio.Event()

        async def one_client() -> None:
            while not gone.is_set():
                shot = chance.choice(shots)
                outcome = await send(client, shot.request(next(ids)), time.perf_counter())
                outcomes.append(outcome)
                if outcome.status in (0, 503):
                    await asyncio.sleep(AGAIN_S)

        async def one_slow() -> None:
            while not gone.is_set():
                shot = chance.choice(shots)
                outcomes.append(await sends_slowly(server.url, shot, next(ids), SLOW_S))
                if outcomes[-1].status in (0, 503):
                    await asyncio.sleep(AGAIN_S)

        works = [one_client() for _ in range(CLIENTS)] + [one_slow() for _ in range(SLOW_CLIENTS)]
        clients = [asyncio.create_task(work) for work in works]
        await asyncio.sleep(chance.uniform(*BEFORE_S))
        signal_s = time.perf_counter()
        code, took_s = await server.end(plan.settings.drain_timeout_s + OVER_S)
        gone.set()
        await asyncio.gather(*clients)
        return Drain(outcomes, signal_s, logged_ids(server), code, took_s)


def judge(outcome: Outcome, drain: Drain, drain_timeout_s: float) -> tuple[Fate, str]:
    """What became of a request, and why that is wrong where it is.

    Not accepted is what never reached the server: a connection that was refused, or a kept-alive
    one that the server closed before it read the request (so its log does not know it). Any client
    may send that again.
    """
    error = outcome.error or ""
    after_signal = outcome.ended_s >= drain.signal_s
    if outcome.status == 200 and not error:
        return "answered", ""
    if outcome.status == 503 and not error:
        if outcome.ended_s - drain.signal_s >= drain_timeout_s:
            return "failed", "cut off by the end of the drain"
        return "refused", ""
    if outcome.status:
        return "failed", f"{outcome.status} {error}"
    if outcome.name in drain.known:
        return "failed", f"accepted, then {error}"
    if not after_signal:
        return "failed", f"{error} before the signal"
    return ("failed", error) if error == "timeout" else ("not accepted", "")


def logged_ids(server: Server) -> set[str]:
    """Of all requests that the server read."""
    return {event["request_id"] for event in server.events("request")}


def shot_of(
    chance: random.Random,
    images: Sequence[Image],
    known: Mapping[tuple[str, float], Bounds],
) -> Shot:
    """A single image, or sometimes a form of eight."""
    if chance.random() < 0.1:
        return form(chance.choices(images, k=8), known)
    return raw(chance.choice(images), known)
