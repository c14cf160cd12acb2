"""(g) Where the server's CPU time goes at saturation, by process and thread.

A tracing profiler would count its own cost in every short call, most of which the event loop makes;
the kernel's own account of each thread costs nothing. The main thread is the event loop; the
server's pools are called decode and answer.
"""

import re
import threading
import time
import urllib.request
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.gpu.bench import Bench, Figures
from benchmarks.gpu.pipeline import WARM_S, Instances
from benchmarks.gpu.raw import reason
from benchmarks.gpu.server import counts, serving
from benchmarks.gpu.threads import NAMING, by_group, threads_of
from benchmarks.load.envs import ROOT
from benchmarks.load.generators import Generators
from benchmarks.load.process import DidNotStart
from benchmarks.load.usage import tree

STAGE = re.compile(
    r'^detector_stage_seconds_(sum|count)\{[^}]*stage="(\w+)"[^}]*\} ([0-9.e+-]+)$', re.MULTILINE
)
CLIENTS = 128  # where part c was not measured


def measure(bench: Bench) -> Generator[Figures]:
    """Every number of HTTP workers, at the clients that part (c) found."""
    figures: Figures = {"arrangements": [], "failed": {}, "enough": False}
    with ExitStack() as opened:
        boxes = counts(bench, Instances(bench, opened, 1))
    todo = bench.job.http_workers
    with TemporaryDirectory(prefix="gpu-names-") as folder:
        (Path(folder) / "sitecustomize.py").write_text(NAMING)
        environment = {"PYTHONPATH": f"{folder}:{ROOT}"}
        for i, processes in enumerate(todo):
            until_s = bench.deadline.left_s / (len(todo) - i)
            began_s = time.monotonic()
            try:
                with serving(bench, processes, boxes, environment) as (load, _):
                    left_s = until_s - (time.monotonic() - began_s)
                    seconds = min(8.0, max(1.0, left_s - WARM_S - 2))
                    clients = known_clients(bench.job.known, processes, bench.job.clients)
                    row = profiled(load, clients, seconds)
                    figures["arrangements"].append({"http_workers": processes} | row)
                    yield figures
            except (DidNotStart, RuntimeError) as error:
                figures["failed"][f"{processes} HTTP workers"] = reason(error)
    if not figures["arrangements"]:
        raise RuntimeError(f"no server could be measured: {figures['failed']}")
    yield figures | {"enough": True}


def profiled(load: Generators, clients: int, seconds: float) -> Figures:
    """Threads and stages of the server while so many clients ask."""
    taken: dict[str, Any] = {}

    def look(name: str) -> None:
        pids = tree(load.server_pid)
        taken[name] = time.perf_counter(), threads_of(pids), stages(load.url), pids

    # Within the load's window, some tenths of a second after its begin and before its end.
    begin = threading.Timer(WARM_S + 0.4, look, ["before"])
    end = threading.Timer(WARM_S + 0.1 + seconds, look, ["after"])
    for each in (begin, end):
        each.start()
    figures = load.closed(clients, seconds, WARM_S)
    for each in (begin, end):
        each.join()
    begin_s, before, stages_before, _ = taken["before"]
    end_s, after, stages_after, pids = taken["after"]
    took_s = end_s - begin_s
    roles = {pid: "server" if pid == load.server_pid else "below it" for pid in pids}
    rows = by_group(before, after, roles, seconds=took_s, images=figures["images_per_s"] * took_s)
    return {
        "clients": clients,
        "load": figures,
        "threads": rows,
        "stage_ms": stage_ms(stages_before, stages_after),
    }


def stages(url: str) -> dict[str, tuple[float, float]]:
    """Seconds and images of each stage so far, as the server's metrics have them."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        return parsed_stages(answer.read().decode())


def parsed_stages(text: str) -> dict[str, tuple[float, float]]:
    """The same from the text of the metrics."""
    found: dict[str, dict[str, float]] = {}
    for kind, stage, value in STAGE.findall(text):
        found.setdefault(stage, {})[kind] = float(value)
    return {stage: (each["sum"], each["count"]) for stage, each in found.items()}


def stage_ms(
    before: dict[str, tuple[float, float]], after: dict[str, tuple[float, float]]
) -> dict[str, float]:
    """Milliseconds that an image spent in each stage between two moments, waits included."""
    found = {}
    for stage, (seconds, images) in after.items():
        seconds_before, images_before = before.get(stage, (0.0, 0.0))
        if images > images_before:
            found[stage] = 1e3 * (seconds - seconds_before) / (images - images_before)
    return found


def known_clients(known: Any, processes: int, tried: tuple[int, ...]) -> int:
    """The clients that saturate so many HTTP workers."""
    for row in known.get("server", {}).get("arrangements", []):
        if row["http_workers"] == processes and "clients" in row:
            return int(row["clients"])
    return min(CLIENTS, tried[-1])
