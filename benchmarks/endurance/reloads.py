"""Another model again and again, while requests run: none fails, each is answered by one model."""

import asyncio
import itertools
import random
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.endurance.corpus import DEFAULT_CONF, Bounds, Image, corpus, expected
from benchmarks.endurance.forms import form, raw
from benchmarks.endurance.plan import Plan
from benchmarks.endurance.probe import MEGA, Sample, constant, sample, sampled, series, settled
from benchmarks.endurance.process import Server, serving
from benchmarks.endurance.shots import Shot, loaded
from benchmarks.endurance.swaps import (
    KEY,
    KEY_HEADER,
    Model,
    Step,
    Swap,
    misplaced,
    put,
    steps,
    take,
)
from benchmarks.endurance.traffic import saturation, spread_ms, took_ms
from benchmarks.endurance.trend import second_half, slope
from benchmarks.endurance.verdict import Criterion, Report, none_of
from benchmarks.load.http_client import Answer, Client, Request
from benchmarks.load.loops import Outcome, send

CLIENTS = 8
WARM_S = 3.0
OF_A_KIND = 24
FIRST_FEW = 8  # images; more would only make the start longer


@dataclass(slots=True)
class Seen:
    """What came of it.

    Attributes:
        swaps: in their order; the first is the state at the begin.
        problems: with reloads, in words.
        outcomes: of requests, named by id.
        answered_by: version, by request id.
        memory_mb: after each reload of a good file.
        samples: of the process, every second.
    """

    swaps: list[Swap]
    problems: list[str]
    outcomes: list[Outcome] = field(default_factory=list)
    answered_by: dict[str, str] = field(default_factory=dict)
    memory_mb: list[float] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)


async def reloads(plan: Plan) -> Report:
    """Runs it against a server of its own."""
    models = [Model.of(path) for path in plan.artifacts]
    chance = random.Random(plan.seed)
    images = [each for each in corpus(plan.images) if each.hw[0] <= 720][:FIRST_FEW]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "model.onnx"
        put(models[0].path, place)
        flags = [*plan.flags, f"--model={place}", f"--api-keys={KEY}"]
        async with serving(flags, plan.python) as server:
            known, problems = {}, []
            for i in (1, 0):
                problems += await take(server, place, models, Step(i, good=True, by_http=True))
                known[models[i].version] = await expected(
                    server, images, (DEFAULT_CONF,), KEY_HEADER
                )
            shots = [of_any_version(images, known, chance) for _ in range(OF_A_KIND)]
            await warm(server, shots[0])
            before = sample(server.pid)
            seen = Seen([Swap(0, time.perf_counter(), models[0].version)], problems)
            await swap_under_load(server, place, models, steps(plan.reloads), shots, chance, seen)
            await server.quiet()
            after = await settled(server.pid, before.files)
    return report(seen, before, after)


async def warm(server: Server, shot: "AnyVersion") -> None:
    """Loads the server until it has started every thread that it needs."""
    requests = itertools.cycle(each.request("warm") for each in shot.by_version.values())
    await saturation(server.url, requests.__next__, WARM_S, clients=2 * CLIENTS)
    await server.quiet()


async def swap_under_load(
    server: Server,
    place: Path,
    models: Sequence[Model],
    to_come: Sequence[Step],
    shots: Sequence["AnyVersion"],
    chance: random.Random,
    seen: Seen,
) -> None:
    """One reload after the other, while clients ask all the time."""
    ids = (f"reloads-{i}" for i in itertools.count())
    stop = False

    async def one_client(client: Client) -> None:
        while not stop:
            request = noting_version(chance.choice(shots), next(ids), seen.answered_by)
            seen.outcomes.append(await send(client, request, time.perf_counter()))

    async with sampled(server.pid) as seen.samples, Client(server.url) as client:
        clients = [asyncio.create_task(one_client(client)) for _ in range(CLIENTS)]
        for step in to_come:
            began_s = time.perf_counter()
            seen.problems += await take(server, place, models, step)
            version = models[step.model].version if step.good else seen.swaps[-1].version
            seen.swaps.append(Swap(began_s, time.perf_counter(), version))
            if step.good:
                seen.memory_mb.append(sample(server.pid).rss_bytes / MEGA)
        stop = True
        await asyncio.gather(*clients)


def report(seen: Seen, before: Sample, after: Sample) -> Report:
    """What was seen, against what has to hold."""
    outcomes, swaps = seen.outcomes, seen.swaps
    failed = [each.error or str(each.status) for each in outcomes if not each.good]
    figures = {
        "reloads": len(swaps) - 1,
        "requests": len(outcomes),
        "answered_by": dict(Counter(seen.answered_by.values())),
        "answered_ms": spread_ms(took_ms([each for each in outcomes if each.good])),
        "reload_s": spread_ms(sorted(swap.ended_s - swap.began_s for swap in swaps[1:])),
        "rss_mb_first_and_last": [*seen.memory_mb[:1], *seen.memory_mb[-1:]],
    }
    criteria = [
        none_of("no failed request, and every answer is that of the one model it names", failed),
        none_of(
            "each by a model that was being served at the time",
            misplaced(outcomes, seen.answered_by, swaps),
        ),
        none_of(
            "good files are taken, bad ones refused (409, or counted as failed)", seen.problems
        ),
        memory_per_reload(seen.memory_mb),
        constant(before, seen.samples, after),
    ]
    raw_figures = {"rss_mb_after_each": seen.memory_mb, "process": series(seen.samples)}
    return Report("reloads", criteria, figures | raw_figures, tuple(figures))


@dataclass(frozen=True, slots=True)
class AnyVersion:
    """A request that several models answer, each in its own way.

    Attributes:
        by_version: the request with that model's check.
    """

    by_version: Mapping[str, Shot]


def of_any_version(
    images: Sequence[Image],
    known: Mapping[str, Mapping[tuple[str, float], Bounds]],
    chance: random.Random,
) -> AnyVersion:
    """A single image or a form of two to four."""
    chosen = chance.choices(images, k=chance.choice((1, 1, 1, 2, 4)))
    shots = {}
    for version, bounds in known.items():
        shot = raw(chosen[0], bounds) if len(chosen) == 1 else form(chosen, bounds)
        shots[version] = replace(shot, headers={**shot.headers, **KEY_HEADER})
    return AnyVersion(shots)


def noting_version(shot: AnyVersion, request_id: str, answered_by: dict[str, str]) -> Request:
    """The request; its answer is checked as the model's that it names, which is noted."""

    def check(answer: Answer) -> str | None:
        if answer.status != 200:
            return f"{answer.status}: {answer.body[:200]!r}"
        version = (loaded(answer) or {}).get("model", {}).get("version", "")
        answered_by[request_id] = version
        if version not in shot.by_version:
            return f"answered by version {version!r}"
        return shot.by_version[version].wrong(answer, request_id)

    some = next(iter(shot.by_version.values()))
    return replace(some.request(request_id), check=check)


def memory_per_reload(memory: Sequence[float]) -> Criterion:
    """MB after each reload; two by two, as the two models differ in size."""
    name = "memory flat: over the second half not surely rising by more than 2 %"
    pairs = [(a + b) / 2 for a, b in zip(memory[::2], memory[1::2], strict=False)]
    counts = [2.0 * i for i in range(len(pairs))]
    if len(pairs) < 6:
        return Criterion(name, "too few to tell", True)
    half = second_half(counts)
    line = slope(counts[half:], pairs[half:])
    seen = (
        f"{line.per_unit:+.3f} ± {line.error:.3f} MB a reload, "
        f"{line.growth:+.2f} MB of {line.mean:.0f} MB"
    )
    return Criterion(name, seen, line.flat)
