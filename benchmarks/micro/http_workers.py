"""CPU time of an image in each process of the server, alone and behind several HTTP workers.

    .venv/bin/python -m benchmarks.micro.http_workers [--model FILE] [--workers 1 2] [--clients 16]

What limits a server whose model is fast is the thread that runs the event loop: one in each
process. The table has, per image, its CPU milliseconds and those of all other threads (decoding,
answers, inferences). 1000 / (the event loop's milliseconds in the process with the model) is what
that process could pass on a second. CPU time is less sensitive to a busy machine than rates are,
but not insensitive. Other flags go to the server: --max-batch-size=8 --intra-op-threads=N, with N
the CPUs, makes one instance and batches of it, as a GPU has them.
"""

import argparse
import asyncio
import os
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.endurance.process import serving
from benchmarks.load.envs import ROOT
from benchmarks.load.http_client import Client, Request, image_request
from benchmarks.load.loops import closed_loop, in_turn, run_light
from benchmarks.load.process import POLL_S, START_S, DidNotStart
from benchmarks.load.summary import summarize

UP_EVENT = "Application startup complete."


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU seconds of a process: of its main thread, which runs the event loop, and of the others.

    Attributes:
        loop_s: of the main thread.
        others_s: of all other threads that there are.
    """

    loop_s: float
    others_s: float

    def since(self, before: "Cpu") -> "Cpu":
        """What was used after an earlier reading."""
        return Cpu(self.loop_s - before.loop_s, self.others_s - before.others_s)


def cpu_of(pid: int) -> Cpu:
    """What a process has used."""
    seconds = {
        int(task.name): int((task / "schedstat").read_text().split()[0]) / 1e9
        for task in Path(f"/proc/{pid}/task").iterdir()
    }
    loop_s = seconds.pop(pid)
    return Cpu(loop_s, sum(seconds.values()))


async def measure(
    workers: int, flags: list[str], request: Request, clients: int, seconds: float
) -> list[str]:
    """Rows of the table, one a process of a server with so many HTTP workers."""
    async with serving([f"--http-workers={workers}", *flags]) as server:
        until_s = time.perf_counter() + START_S
        while len(server.events(UP_EVENT)) < workers:
            if time.perf_counter() > until_s:
                raise DidNotStart(f"{workers} HTTP workers were not up after {START_S:.0f} s")
            await asyncio.sleep(POLL_S)
        started = server.events("http_worker_started")
        pids = {"model": server.pid} | {each["name"]: each["pid"] for each in started}
        async with Client(server.url) as client:
            await closed_loop(client, in_turn([request]), clients=clients, seconds=1)
            before = {name: cpu_of(pid) for name, pid in pids.items()}
            load = await closed_loop(
                client, in_turn([request]), clients=clients, seconds=seconds, warm_s=0
            )
            after = {name: cpu_of(pid) for name, pid in pids.items()}
    figures = summarize(load)
    if set(figures.statuses) != {"200"}:
        raise SystemExit(f"answers: {figures.statuses}")
    # All answers, also those past the window's end: their CPU time is in the figures, too.
    images = len(load.outcomes)
    rows = []
    for name, pid_after in after.items():
        used = pid_after.since(before[name])
        rows.append(
            f"| {len(after) - 1 or 1} | {name} | {1000 * used.loop_s / images:.3f} "
            f"| {1000 * used.others_s / images:.3f} | {figures.images_per_s:.0f} |"
        )
    return rows


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="an artifact; the default weights without")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--image", type=Path, default=ROOT / "samples" / "smear_1.jpg")
    arguments, flags = parser.parse_known_args()
    if arguments.model:
        flags.append(f"--model={arguments.model.resolve()}")
    request = image_request("/detect", arguments.image.read_bytes())
    print(f"{os.cpu_count()} CPUs, {arguments.clients} clients, {arguments.image.name}\n")
    print("| HTTP workers | process | event loop, ms/image | other threads | images/s |")
    print("|---|---|---|---|---|")
    for workers in arguments.workers:
        rows = run_light(measure(workers, flags, request, arguments.clients, arguments.seconds))
        print("\n".join(rows), flush=True)


if __name__ == "__main__":
    main()
