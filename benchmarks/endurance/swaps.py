"""One model in the place of another: how it is asked for, and who may answer meanwhile."""

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.endurance.process import Server, answered
from benchmarks.endurance.shots import loaded
from benchmarks.load.http_client import Request, request_wire
from benchmarks.load.loops import Outcome
from server.inference.artifact import load_artifact

KEY = "endurance"
KEY_HEADER = {"X-API-Key": KEY}
BAD_EVERY = 10
LIMIT_S = 120.0
RELOADS = "detector_reloads_total"


@dataclass(frozen=True, slots=True)
class Model:
    """An artifact that is put in place.

    Attributes:
        path: of its file.
        version: as the server calls it.
    """

    path: Path
    version: str

    @classmethod
    def of(cls, path: Path) -> "Model":
        """Reads the version from the file."""
        return cls(path, load_artifact(path).version)


@dataclass(frozen=True, slots=True)
class Step:
    """One reload to come.

    Attributes:
        model: 0 or 1, of the two.
        good: the file is whole; else it is cut, and must be refused.
        by_http: with `POST /model/reload`, else with SIGHUP.
    """

    model: int
    good: bool
    by_http: bool


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


def steps(count: int) -> list[Step]:
    """Reloads that alternate between the models, beginning with 1, and between both ways."""
    found: list[Step] = []
    model = 0
    for i in range(count):
        good = (i + 1) % BAD_EVERY != 0
        model = 1 - model if good else model
        # Every tenth is bad, and would else always come in the same way.
        found.append(Step(model, good, by_http=(i + i // BAD_EVERY) % 2 == 0))
    return found


async def take(server: Server, place: Path, models: Sequence[Model], step: Step) -> list[str]:
    """Puts a file in place and has it loaded; says what came of it if not what should."""
    (put if step.good else put_bad)(models[step.model].path, place)
    if not step.by_http:
        return await _by_signal(server, good=step.good)
    answer = await answered(
        server, Request(request_wire("POST", "/model/reload", headers=KEY_HEADER))
    )
    body = loaded(answer) or {}
    if step.good:
        right = answer.status == 200 and body.get("version") == models[step.model].version
    else:
        right = answer.status == 409 and body.get("code") == "reload_failed"
    return [] if right else [f"{step}: {answer.status} {answer.body[:200]!r}"]


async def _by_signal(server: Server, *, good: bool) -> list[str]:
    before = (await server.scrape())[RELOADS]
    os.kill(server.pid, signal.SIGHUP)
    end_s = time.perf_counter() + LIMIT_S
    while (now := (await server.scrape())[RELOADS]) == before:
        if time.perf_counter() > end_s:
            return [f"SIGHUP: no reload in {LIMIT_S:g} s"]
        await asyncio.sleep(0.02)
    key = (("outcome", "ok" if good else "failed"),)
    return [] if now[key] == before[key] + 1 else [f"SIGHUP, {good=} file: {now}"]


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
