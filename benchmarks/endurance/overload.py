"""Ten times what the server can do: it does what it can, and says no to the rest at once."""

import time
from collections import Counter
from collections.abc import Callable, Sequence

from benchmarks.endurance.lag import LoopLag, Stalls
from benchmarks.endurance.plan import Plan
from benchmarks.endurance.probe import MEGA, flat_memory, sample, sampled, series
from benchmarks.endurance.process import Server, serving
from benchmarks.endurance.traffic import (
    arrive,
    lone_latency_s,
    median_ms,
    saturation,
    took_ms,
    under_way,
)
from benchmarks.endurance.verdict import Criterion, Report, none_of
from benchmarks.serving.http_client import Answer, Client, Request, request_wire
from benchmarks.serving.load import Outcome, in_turn, percentile, poisson, send
from benchmarks.serving.pictures import read_pictures

CONNECTIONS = 512
LONE = 20  # requests for a lone client's median latency
LEAST_GOODPUT = 0.9
REFUSAL_MS = 100.0
NORMAL_AFTER_S = 2.0
NORMAL_RATIO = 1.5
NOT_SENT = "no connection free"  # as `Client.ask` says it


async def overload(plan: Plan) -> Report:
    """Runs it against a server of its own."""
    pick = in_turn([refusable(each.data) for each in read_pictures(plan.pictures, 32)])
    async with serving(plan.flags, plan.python) as server:
        await lone_latency_s(server.url, pick, LONE)  # warm
        before_ms = median_ms(await lone_latency_s(server.url, pick, LONE))
        best = await saturation(server.url, pick, plan.saturation_s)
        rate = plan.times * best.images_per_s
        outcomes: list[Outcome] = []
        limit_s = plan.settings.request_timeout_s + 5
        async with (
            Client(server.url, timeout_s=limit_s, max_connections=CONNECTIONS) as client,
            sampled(server.pid) as samples,
            LoopLag() as lag,
            under_way() as start,
        ):

            async def one(intended_s: float) -> Outcome:
                outcomes.append(await send(client, pick(), intended_s))
                return outcomes[-1]

            began_s, cpu_s = time.perf_counter(), time.process_time()
            arrivals = poisson(rate, plan.overload_s, plan.seed)
            await arrive(arrivals, lambda intended_s: start(one(intended_s)))
            ended_s = time.perf_counter()
            generator_cpus = (time.process_time() - cpu_s) / (ended_s - began_s)
            recovery = await recover(server, pick, ended_s, NORMAL_RATIO * before_ms)
        await server.quiet()
        after_ms = median_ms(await lone_latency_s(server.url, pick, LONE))
        rss_after = sample(server.pid).rss_bytes
    window_s = ended_s - began_s
    good = [each for each in outcomes if each.good]
    goodput = sum(each.images for each in good if each.ended_s <= ended_s) / window_s
    others = [each for each in outcomes if not each.good and each.error != NOT_SENT]
    sent = (len(good) + len(others)) / window_s
    deadline_ms = 1e3 * plan.settings.request_timeout_s
    figures = {
        "saturation_images_per_s": best.images_per_s,
        "offered_per_s": sent,
        "goodput_images_per_s": goodput,
        "answers": dict(Counter(what(each) for each in outcomes)),
        "accepted_ms": spread_ms(took_ms(good)),
        "refused_ms": spread_ms(took_ms(others)),
        "generator_stalls_ms": spread_ms([1e3 * each for each in lag.stalls.lengths_s()]),
        "generator_cpus": generator_cpus,
        "sent_late_ms": spread_ms(sorted(1e3 * (e.started_s - e.intended_s) for e in outcomes)),
        "lone_before_ms": before_ms,
        "lone_after_ms": after_ms,
        "normal_after_s": recovery,
        "rss_mb_at_the_end": rss_after / MEGA,
    }
    slow = late_refusals(others, lag.stalls)
    criteria = [
        Criterion(
            f"offered {plan.times:g} times what saturates (0.95 of it really sent)",
            f"{sent:.0f} of {rate:.0f} requests/s",
            sent >= 0.95 * rate,
        ),
        Criterion(
            f"goodput at least {LEAST_GOODPUT:g} of saturation",
            f"{goodput:.1f} of {best.images_per_s:.1f} images/s: {goodput / best.images_per_s:.2f}",
            goodput >= LEAST_GOODPUT * best.images_per_s,
        ),
        Criterion(
            f"accepted requests' p99 within the deadline of {deadline_ms:.0f} ms",
            f"{percentile(took_ms(good), 99):.0f} ms",
            percentile(took_ms(good), 99) <= deadline_ms,
        ),
        none_of(
            "every other request a 503 with Retry-After",
            [what(each) for each in others if each.status != 503 or each.error],
        ),
        Criterion(
            f"each of them within {REFUSAL_MS:.0f} ms, the generator's own stalls taken off",
            f"{len(slow)} of {len(others)} later; at most {max(slow, default=0):.0f} ms",
            not slow,
        ),
        flat_memory([each for each in samples if each.at_s <= ended_s]),
        Criterion(
            f"normal within {NORMAL_AFTER_S:g} s after the last arrival: queue empty, a lone "
            f"request 200 within {NORMAL_RATIO:g} times of before",
            f"after {recovery:.1f} s; lone {before_ms:.1f} ms before, {after_ms:.1f} ms after",
            recovery <= NORMAL_AFTER_S and after_ms <= NORMAL_RATIO * before_ms,
        ),
    ]
    shown = tuple(figures)
    return Report("overload", criteria, figures | {"process": series(samples)}, shown)


def refusable(image: bytes) -> Request:
    """One image as the raw body, whose refusal has to say when to come again."""

    def check(answer: Answer) -> str | None:
        if answer.status == 503 and not answer.headers.get("retry-after", "").isdecimal():
            return "503 without Retry-After"
        return None

    wire = request_wire("POST", "/detect", image, {"Content-Type": "image/jpeg"})
    return Request(wire, 1, check, check_all=True)


async def recover(
    server: Server, pick: Callable[[], Request], ended_s: float, normal_ms: float
) -> float:
    """Asks alone until all is as before; seconds since the end of the load, at most 60."""
    async with Client(server.url) as client:
        while (since_s := time.perf_counter() - ended_s) < 60:
            outcome = await send(client, pick(), time.perf_counter())
            fast = 1e3 * (outcome.ended_s - outcome.started_s) <= normal_ms
            if outcome.good and fast and (await server.health())["queue_images"] == 0:
                return outcome.ended_s - ended_s
    return since_s


def late_refusals(refused: Sequence[Outcome], stalls: Stalls) -> list[float]:
    """Milliseconds of the refusals that took too long, without the generator's own part."""
    late = []
    for each in refused:
        took_s = each.ended_s - each.started_s
        if 1e3 * took_s > REFUSAL_MS:
            own_s = stalls.within(each.started_s, each.ended_s)
            if 1e3 * (took_s - own_s) > REFUSAL_MS:
                late.append(1e3 * (took_s - own_s))
    return late


def spread_ms(ascending: Sequence[float]) -> dict[str, float]:
    """Percentiles for the table; none of nothing."""
    if not ascending:
        return {}
    return {f"p{each}": percentile(ascending, each) for each in (50, 99)} | {"max": ascending[-1]}


def what(outcome: Outcome) -> str:
    """An outcome in a word."""
    return outcome.error or str(outcome.status)
