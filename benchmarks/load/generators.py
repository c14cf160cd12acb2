"""Load from several processes as if from one: one Python process may not make enough of it."""

import json
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.load.child import python
from benchmarks.load.envs import ROOT
from benchmarks.load.loops import Load, Outcome
from benchmarks.load.summary import summarize
from benchmarks.load.usage import Usage, tree_usage

AHEAD_S = 0.2  # from an order until its load begins
# Where requests were sent later than this, the generator was measured and not the server.
LATE_MS = 5.0


class Generators:
    """Processes that make load on one server. Made by `generating`.

    Attributes:
        url: of the server.
        server_pid: the process that was started; others may be below it.
    """

    def __init__(
        self, processes: Sequence[subprocess.Popen[str]], url: str, server_pid: int
    ) -> None:
        self._processes = processes
        self.url = url
        self.server_pid = server_pid

    def closed(self, clients: int, seconds: float, warm_s: float) -> dict[str, Any]:
        """Figures of so many clients, each with one request under way at any time."""
        shares = split(clients, len(self._processes))
        orders = [{"clients": share} for share in shares if share]
        return self._load(orders, seconds, warm_s)

    def open(self, rate: float, seconds: float, warm_s: float, seed: int) -> dict[str, Any]:
        """Figures of a Poisson load of `rate` requests a second on average, whatever becomes."""
        n = len(self._processes)
        orders = [{"rate": rate / n, "seed": seed * n + i} for i in range(n)]
        return self._load(orders, seconds, warm_s) | {"offered_per_s": rate}

    def _load(
        self, orders: Sequence[Mapping[str, Any]], seconds: float, warm_s: float
    ) -> dict[str, Any]:
        begin_s = time.perf_counter() + AHEAD_S
        asked = self._processes[: len(orders)]
        for process, order in zip(asked, orders, strict=True):
            line = {"begin_s": begin_s, "seconds": seconds, "warm_s": warm_s, **order}
            assert process.stdin is not None
            process.stdin.write(json.dumps(line) + "\n")
            process.stdin.flush()
        server = usage_between(self.server_pid, begin_s + warm_s, begin_s + warm_s + seconds)
        loads = [unpacked(said(process)) for process in asked]
        return figures(together(loads, server), len(asked))


@contextmanager
def generating(
    count: int,
    url: str,
    path: str,
    images: Sequence[Path],
    boxes: Sequence[int],
    server_pid: int,
) -> Iterator[Generators]:
    """Starts processes that make load, and ends them.

    Args:
        count: how many.
        url: of the server.
        path: where it takes images.
        images: JPEG files.
        boxes: about how many the answer to each holds.
        server_pid: whose CPU time and memory are noted.
    """
    with ExitStack() as ending:
        processes = []
        for i in range(count):
            process = subprocess.Popen(
                python("benchmarks.load.generator"),
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            ending.callback(_end, process)
            processes.append(process)
            start = {
                "url": url,
                "path": path,
                "images": [str(each) for each in images],
                "counts": list(boxes),
                "first": i * len(images) // count,
            }
            assert process.stdin is not None
            process.stdin.write(json.dumps(start) + "\n")
            process.stdin.flush()
        for process in processes:
            said(process)
        yield Generators(processes, url, server_pid)


def said(process: subprocess.Popen[str]) -> Any:
    """The next line of a generator.

    Raises:
        RuntimeError: it has ended.
    """
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"a process that makes load ended with {process.wait()}")
    return json.loads(line)


def split(number: int, among: int) -> list[int]:
    """So many things in shares that differ by one at most, the larger first."""
    return [number // among + (i < number % among) for i in range(among)]


def usage_between(pid: int, begin_s: float, end_s: float) -> tuple[Usage, Usage]:
    """What a tree of processes has used at two moments of `time.perf_counter`."""
    time.sleep(max(0.0, begin_s - time.perf_counter()))
    before = tree_usage(pid)
    time.sleep(max(0.0, end_s - time.perf_counter()))
    return before, tree_usage(pid)


def unpacked(line: Mapping[str, Any]) -> Load:
    """What a generator sent."""
    return Load(
        outcomes=[Outcome(*each) for each in line["outcomes"]],
        window_s=tuple(line["window_s"]),
        open_loop=line["open_loop"],
        generator_cpu_s=line["generator_cpu_s"],
        server=None,
    )


def together(loads: Sequence[Load], server: tuple[Usage, Usage] | None) -> Load:
    """Loads at the same time as one; what counts is the time in which all of them ran."""
    outcomes = sorted((e for load in loads for e in load.outcomes), key=lambda e: e.ended_s)
    return Load(
        outcomes=outcomes,
        window_s=(max(e.window_s[0] for e in loads), min(e.window_s[1] for e in loads)),
        open_loop=loads[0].open_loop,
        generator_cpu_s=sum(each.generator_cpu_s for each in loads),
        server=server,
    )


def figures(load: Load, generators: int) -> dict[str, Any]:
    """A load's figures; `busiest` is what each generator used of a CPU on average."""
    summary = summarize(load)
    limited = load.open_loop and not summary.late_p99_ms <= LATE_MS
    return asdict(summary) | {
        "generators": generators,
        "busiest": summary.generator_cpus / generators,
        # Past four fifths of a CPU a generator answers late itself.
        "generator_limits": limited or summary.generator_cpus / generators > 0.8,
    }


def _end(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
