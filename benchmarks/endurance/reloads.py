"""Another model again and again, while requests run: none fails, each is answered by one model."""

import asyncio
import itertools
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.endurance.corpus import DEFAULT_CONF, Bounds, Picture, corpus, expected
from benchmarks.endurance.forms import form, raw
from benchmarks.endurance.mixed import settled
from benchmarks.endurance.overload import spread_ms
from benchmarks.endurance.plan import Plan
from benchmarks.endurance.probe import MEGA, constant, sample, sampled, series
from benchmarks.endurance.process import Server, answered, serving
from benchmarks.endurance.shots import Shot, loaded
from benchmarks.endurance.traffic import saturation, took_ms
from benchmarks.endurance.trend import second_half, slope
from benchmarks.endurance.verdict import Criterion, Report, none_of
from benchmarks.serving.http_client import Answer, Client, Request, request_wire
from benchmarks.serving.load import Outcome, send
from server.artifact import load_artifact

KEY = "endurance"
KEY_HEADER = {"X-API-Key": KEY}
CLIENTS = 8
BAD_EVERY = 10
WARM_S = 3.0
LIMIT_S = 120.0
RELOADS = "detector_reloads_total"
OF_A_KIND = 24
FIRST_FEW = 8  # pictures; more would only make the start longer


@dataclass(frozen=True, slots=True)
class Swap:
    """One reload. Times are seconds of `time.perf_counter`.

    Attributes:
        began_s: before it was asked for.
        ended_s: when it was known to be over.
        version: of the model that serves since then.
    """

    began_s: float
    ended_s: float
    version: str


async def reloads(plan: Plan) -> Report:
    """Runs it against a server of its own."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.onnx"
        put(plan.artifacts[0], model)
        flags = [*plan.flags, f"--model={model}", f"--api-keys={KEY}"]
        async with serving(flags, plan.python) as server:
            return await _reloads(plan, server, model)


async def _reloads(plan: Plan, server: Server, model: Path) -> Report:
    pictures = [each for each in corpus(plan.pictures) if each.hw[0] <= 720][:FIRST_FEW]
    versions = [load_artifact(path).version for path in plan.artifacts]
    known = {}
    problems = []
    for path, version in [*zip(plan.artifacts, versions, strict=True)][::-1]:
        problems += await swap_by_http(server, model, path, good=True)
        known[version] = await expected(server, pictures, (DEFAULT_CONF,), KEY_HEADER)
    swaps = [Swap(0, time.perf_counter(), versions[0])]
    chance, ids = random.Random(plan.seed), (f"{plan.seed}-{i}" for i in itertools.count())
    shots = [of_any_version(pictures, known, chance) for _ in range(OF_A_KIND)]
    outcomes: list[Outcome] = []
    answered_by: dict[str, str] = {}
    memory: list[float] = []
    took_s: list[float] = []
    stop = False

    async def one_client(client: Client) -> None:
        while not stop:
            shot, request_id = chance.choice(shots), next(ids)
            request = noting_version(shot, request_id, answered_by)
            outcomes.append(await send(client, request, time.perf_counter()))

    # Until every thread that load needs has been started.
    everything = itertools.cycle(shot.request("warm") for shot in shots[0].by_version.values())
    await saturation(server.url, everything.__next__, WARM_S, clients=2 * CLIENTS)
    await server.quiet()
    before = sample(server.pid)
    async with sampled(server.pid) as samples, Client(server.url) as client:
        clients = [asyncio.create_task(one_client(client)) for _ in range(CLIENTS)]
        for i in range(plan.reloads):
            good = (i + 1) % BAD_EVERY != 0
            nth_good = i - i // BAD_EVERY
            artifact = plan.artifacts[(nth_good + 1) % 2] if good else plan.artifacts[0]
            by_http = i % 2 == 0 or (not good and i // BAD_EVERY % 2 == 0)
            began_s = time.perf_counter()
            swap = swap_by_http if by_http else swap_by_signal
            problems += await swap(server, model, artifact, good=good)
            version = versions[(nth_good + 1) % 2] if good else swaps[-1].version
            swaps.append(Swap(began_s, time.perf_counter(), version))
            if good:
                took_s.append(swaps[-1].ended_s - began_s)
                memory.append(sample(server.pid).rss_bytes / MEGA)
        stop = True
        await asyncio.gather(*clients)
    await server.quiet()
    after = await settled(server, before.files)
    failed = [each.error or str(each.status) for each in outcomes if not each.good]
    figures = {
        "reloads": plan.reloads,
        "requests": len(outcomes),
        "answered_by": dict(Counter(answered_by.values())),
        "answered_ms": spread_ms(took_ms([each for each in outcomes if each.good])),
        "reload_s": spread_ms(sorted(took_s)),
        "rss_mb_first_and_last": [*memory[:1], *memory[-1:]],
    }
    criteria = [
        none_of("no failed request, and every answer is that of the one model it names", failed),
        none_of(
            "each by a model that was being served at the time",
            misplaced(outcomes, answered_by, swaps),
        ),
        none_of("good files are taken, bad ones refused (409, or counted as failed)", problems),
        memory_per_reload(memory),
        constant(before, samples, after),
    ]
    raw_figures = {"rss_mb_after_each": memory, "process": series(samples)}
    return Report("reloads", criteria, figures | raw_figures, tuple(figures))


def put(artifact: Path, model: Path) -> None:
    """A file in the place of another, at once: a copy, renamed."""
    beside = model.with_name("next.onnx")
    shutil.copyfile(artifact, beside)
    beside.replace(model)


def put_bad(artifact: Path, model: Path) -> None:
    """Half of a file in the place of another."""
    beside = model.with_name("next.onnx")
    content = artifact.read_bytes()
    beside.write_bytes(content[: len(content) // 2])
    beside.replace(model)


async def swap_by_http(server: Server, model: Path, artifact: Path, *, good: bool) -> list[str]:
    """Puts a file in place and asks for a reload; says what was wrong with the answer."""
    (put if good else put_bad)(artifact, model)
    wire = request_wire("POST", "/model/reload", headers=KEY_HEADER)
    answer = await answered(server, Request(wire))
    body = loaded(answer) or {}
    if good:
        right = answer.status == 200 and body.get("version") == load_artifact(artifact).version
    else:
        right = answer.status == 409 and body.get("code") == "reload_failed"
    return [] if right else [f"reload of a {good=} file: {answer.status} {answer.body[:200]!r}"]


async def swap_by_signal(server: Server, model: Path, artifact: Path, *, good: bool) -> list[str]:
    """Puts a file in place and sends SIGHUP; says what came of it if not what should."""
    (put if good else put_bad)(artifact, model)
    outcome = "ok" if good else "failed"
    before = (await server.scrape())[RELOADS]
    os.kill(server.pid, signal.SIGHUP)
    end_s = time.perf_counter() + LIMIT_S
    while (now := (await server.scrape())[RELOADS]) == before:
        if time.perf_counter() > end_s:
            return [f"SIGHUP: no reload in {LIMIT_S:g} s"]
        await asyncio.sleep(0.02)
    key = (("outcome", outcome),)
    return [] if now[key] == before[key] + 1 else [f"SIGHUP, {good=} file: {now}"]


@dataclass(frozen=True, slots=True)
class AnyVersion:
    """A request that several models answer, each in its own way.

    Attributes:
        by_version: the request with that model's check.
    """

    by_version: Mapping[str, Shot]


def of_any_version(
    pictures: Sequence[Picture],
    known: Mapping[str, Mapping[tuple[str, float], Bounds]],
    chance: random.Random,
) -> AnyVersion:
    """A single image or a form of two to four."""
    chosen = chance.choices(pictures, k=chance.choice((1, 1, 1, 2, 4)))
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


def served_meanwhile(swaps: Sequence[Swap], begin_s: float, end_s: float) -> set[str]:
    """Versions that may have answered a request: served at any time of it.

    Args:
        swaps: in their order, the first one over before any request.
        begin_s: of the request.
        end_s: of the request.
    """
    over = [swap for swap in swaps if swap.ended_s <= begin_s]
    during = [swap for swap in swaps if swap.began_s <= end_s and swap.ended_s > begin_s]
    return {over[-1].version, *(swap.version for swap in during)}


def misplaced(
    outcomes: Sequence[Outcome], answered_by: Mapping[str, str], swaps: Sequence[Swap]
) -> list[str]:
    """Answers by a model that was not served at any time of the request."""
    found = []
    for each in outcomes:
        version = answered_by.get(each.name)
        possible = served_meanwhile(swaps, each.started_s, each.ended_s)
        if version is not None and version not in possible:
            found.append(f"{version} instead of {' or '.join(sorted(possible))}")
    return found


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
