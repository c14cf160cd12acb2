"""Single images beside requests of 64: how long do they wait?"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from benchmarks.endurance.corpus import Bounds, corpus
from benchmarks.endurance.forms import form, raw
from benchmarks.endurance.plan import Plan
from benchmarks.endurance.process import serving
from benchmarks.endurance.traffic import (
    median_ms,
    saturation,
    spread_ms,
    took_ms,
    under_way,
)
from benchmarks.endurance.verdict import Criterion, Report, none_of
from benchmarks.load.http_client import Client, Request
from benchmarks.load.loops import Outcome, arrive, in_turn, poisson, send
from benchmarks.load.summary import percentile

SHARE = 0.15  # of saturation, that the single ones are
LARGE = 64
# One that waits for all images of a large one, half of it on average, would be far above this.
MOST_OF_LARGE = 0.25
ANY = Bounds(0, 10_000)


async def fairness(plan: Plan) -> Report:
    """Runs it against a server of its own."""
    vga = [p for p in corpus(plan.images) if p.hw == (480, 640) and p.name.endswith(".jpg")]
    known = {(each.name, 0.25): ANY for each in vga}
    pick = in_turn([raw(each, known).request("single") for each in vga])
    images = min(LARGE, plan.settings.max_images_per_request)
    large = form([vga[i % len(vga)] for i in range(images)], known).request("large")
    async with serving(plan.flags, plan.python) as server:
        best = await saturation(server.url, pick, plan.saturation_s)
        rate = SHARE * best.images_per_s
        alone, _ = await singles(server.url, pick, None, rate, plan)
        beside, larges = await singles(server.url, pick, large, rate, plan)
    failed = [e.error or str(e.status) for e in [*alone, *beside, *larges] if not e.good]
    p99, large_ms = percentile(took_ms(beside), 99), median_ms(larges)
    figures: dict[str, Any] = {
        "saturation_images_per_s": best.images_per_s,
        "singles_per_s": rate,
        "images_in_a_large_one": images,
        "singles_alone_ms": spread_ms(took_ms(alone)),
        "singles_beside_large_ones_ms": spread_ms(took_ms(beside)),
        "large_ones_ms": spread_ms(took_ms(larges)),
        "large_ones": len(larges),
    }
    criteria = [
        none_of("all answered with 200", failed),
        Criterion(
            f"singles' p99 at most {MOST_OF_LARGE:g} of a large one's median",
            f"{p99:.0f} of {large_ms:.0f} ms",
            p99 <= MOST_OF_LARGE * large_ms,
        ),
    ]
    return Report("fairness", criteria, figures, tuple(figures))


async def singles(
    url: str, pick: Callable[[], Request], large: Request | None, rate: float, plan: Plan
) -> tuple[list[Outcome], list[Outcome]]:
    """Single images at a rate, beside large requests one after the other, or without."""
    outcomes: list[Outcome] = []
    larges: list[Outcome] = []
    over = False
    async with Client(url) as client, under_way() as start:

        async def one(intended_s: float) -> Outcome:
            outcomes.append(await send(client, pick(), intended_s))
            return outcomes[-1]

        async def large_ones(request: Request) -> None:
            while not over:
                larges.append(await send(client, request, time.perf_counter()))

        works = [asyncio.create_task(large_ones(large))] if large else []
        arrivals = poisson(rate, plan.fairness_s, plan.seed)
        await arrive(arrivals, lambda intended_s: start(one(intended_s)), time.perf_counter())
        over = True
        await asyncio.gather(*works)
    return outcomes, larges
