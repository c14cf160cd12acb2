"""Ten times what the server can do: it does what it can, and says no to the rest at once."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.endurance.lag import LoopLag, Stalls
from benchmarks.endurance.plan import Plan
from benchmarks.endurance.probe import Sample, flat_memory, sampled, series
from benchmarks.endurance.process import Server, serving
from benchmarks.endurance.traffic import (
    lone_latency_s,
    median_ms,
    saturation,
    spread_ms,
    took_ms,
    under_way,
)
from benchmarks.endurance.verdict import Criterion, Report, none_of
from benchmarks.load.http_client import Answer, Client, Request, request_wire
from benchmarks.load.loops import Outcome, arrive, in_turn, poisson, send
from benchmarks.load.summary import percentile
from benchmarks.serving.sample_images import read_images

CONNECTIONS = 512
LONE = 20  # requests for a lone client's median latency
LEAST_SENT = 0.95
LEAST_GOODPUT = 0.9
REFUSAL_MS = 100.0
NORMAL_AFTER_S = 2.0
NORMAL_RATIO = 1.5
NOT_SENT = "no connection free"  # as `Client.ask` says it


@dataclass(slots=True)
class Seen:
    """What came of the offer. Times are seconds of `time.perf_counter`.

    Attributes:
        began_s, ended_s: of the arrivals.
        generator_cpus: CPUs that the generator used meanwhile.
        normal_after_s: from the end until all was as before.
        outcomes: of all requests.
        samples: of the process; those after the end included.
        stalls: of the generator.
    """

    began_s: float = 0.0
    ended_s: float = 0.0
    generator_cpus: float = 0.0
    normal_after_s: float = 0.0
    outcomes: list[Outcome] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    stalls: Stalls = field(default_factory=Stalls)


async def overload(plan: Plan) -> Report:
    """Runs it against a server of its own."""
    pick = in_turn([refusable(each.data) for each in read_images(plan.images, 32)])
    async with serving(plan.flags, plan.python) as server:
        await lone_latency_s(server.url, pick, LONE)  # warm
        before_ms = median_ms(await lone_latency_s(server.url, pick, LONE))
        best = (await saturation(server.url, pick, plan.saturation_s)).images_per_s
        seen = await offer(server, pick, plan, plan.times * best, NORMAL_RATIO * before_ms)
        await server.quiet()
        after_ms = median_ms(await lone_latency_s(server.url, pick, LONE))
    return report(seen, plan, best, (before_ms, after_ms))


async def offer(
    server: Server, pick: Callable[[], Request], plan: Plan, rate: float, normal_ms: float
) -> Seen:
    """Requests at a rate, then a lone client that waits until all is as before."""
    seen = Seen()
    limit_s = plan.settings.request_timeout_s + 5
    async with (
        Client(server.url, timeout_s=limit_s, max_connections=CONNECTIONS) as client,
        sampled(server.pid) as seen.samples,
        LoopLag() as lag,
        under_way() as start,
    ):

        async def one(intended_s: float) -> Outcome:
            seen.outcomes.append(await send(client, pick(), intended_s))
            return seen.outcomes[-1]

        seen.stalls = lag.stalls
        seen.began_s, cpu_s = time.perf_counter(), time.process_time()
        arrivals = poisson(rate, plan.overload_s, plan.seed)
        await arrive(arrivals, lambda intended_s: start(one(intended_s)), time.perf_counter())
        seen.ended_s = time.perf_counter()
        seen.generator_cpus = (time.process_time() - cpu_s) / (seen.ended_s - seen.began_s)
        seen.normal_after_s = await recover(server, pick, seen.ended_s, normal_ms)
    return seen


def report(seen: Seen, plan: Plan, best: float, lone_ms: tuple[float, float]) -> Report:
    """What was seen, against what has to hold.

    Args:
        seen: during the offer.
        plan: as it was run.
        best: images/s at saturation.
        lone_ms: a lone client's median latency before and after.
    """
    window_s = seen.ended_s - seen.began_s
    good = [each for each in seen.outcomes if each.good]
    others = [each for each in seen.outcomes if not each.good and each.error != NOT_SENT]
    goodput = sum(each.images for each in good if each.ended_s <= seen.ended_s) / window_s
    sent, rate = (len(good) + len(others)) / window_s, plan.times * best
    late = late_refusals(others, seen.stalls)
    p99_ms, deadline_ms = percentile(took_ms(good), 99), 1e3 * plan.settings.request_timeout_s
    figures = {
        "saturation_images_per_s": best,
        "offered_per_s": sent,
        "goodput_images_per_s": goodput,
        "answers": dict(Counter(what(each) for each in seen.outcomes)),
        "accepted_ms": spread_ms(took_ms(good)),
        "refused_ms": spread_ms(took_ms(others)),
        "generator_stalls_ms": spread_ms([1e3 * each for each in seen.stalls.lengths_s()]),
        "generator_cpus": seen.generator_cpus,
        "sent_late_ms": spread_ms(
            sorted(1e3 * (e.started_s - e.intended_s) for e in good + others)
        ),
        "lone_before_and_after_ms": list(lone_ms),
        "normal_after_s": seen.normal_after_s,
    }
    criteria = [
        Criterion(
            f"offered {plan.times:g} times what saturates ({LEAST_SENT:g} of it really sent)",
            f"{sent:.0f} of {rate:.0f} requests/s",
            sent >= LEAST_SENT * rate,
        ),
        Criterion(
            f"goodput at least {LEAST_GOODPUT:g} of saturation",
            f"{goodput:.1f} of {best:.1f} images/s: {goodput / best:.2f}",
            goodput >= LEAST_GOODPUT * best,
        ),
        Criterion(
            f"accepted requests' p99 within the deadline of {deadline_ms:.0f} ms",
            f"{p99_ms:.0f} ms",
            p99_ms <= deadline_ms,
        ),
        none_of(
            "every other request a 503 with Retry-After",
            [what(each) for each in others if each.status != 503 or each.error],
        ),
        Criterion(
            f"each of them within {REFUSAL_MS:.0f} ms, the generator's own stalls taken off",
            f"{len(late)} of {len(others)} later; "
            f"at most {max((ms for _, ms in late), default=0):.0f} ms",
            not late,
        ),
        flat_memory([each for each in seen.samples if each.at_s <= seen.ended_s]),
        Criterion(
            f"normal within {NORMAL_AFTER_S:g} s after the last arrival: queue empty, a lone "
            f"request 200 within {NORMAL_RATIO:g} times of before",
            f"after {seen.normal_after_s:.1f} s; "
            f"lone {lone_ms[0]:.1f} ms before, {lone_ms[1]:.1f} ms after",
            seen.normal_after_s <= NORMAL_AFTER_S and lone_ms[1] <= NORMAL_RATIO * lone_ms[0],
        ),
    ]
    raw_figures = {
        "late_refusals_s_ms": [(at_s - seen.began_s, ms) for at_s, ms in late],
        "process": series(seen.samples),
    }
    return Report("overload", criteria, figures | raw_figures, tuple(figures))


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


def late_refusals(refused: Sequence[Outcome], stalls: Stalls) -> list[tuple[float, float]]:
    """The refusals that took too long, without the generator's own part.

    Returns:
        When each was sent, in seconds of `time.perf_counter`, and what it took, in milliseconds.
    """
    late = []
    for each in refused:
        took_s = each.ended_s - each.started_s
        if 1e3 * took_s > REFUSAL_MS:
            took_s -= stalls.within(each.started_s, each.ended_s)
            if 1e3 * took_s > REFUSAL_MS:
                late.append((each.started_s, 1e3 * took_s))
    return late


def what(outcome: Outcome) -> str:
    """An outcome in a word."""
    return outcome.error or str(outcome.status)
