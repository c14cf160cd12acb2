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
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load.http_client import Client, Request, image_request
from benchmarks.load.loops import closed_loop, in_turn, run_light, summarize

ROOT = Path(__file__).resolve().parents[2]
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


@dataclass(frozen=True, slots=True)
class Server:
    """A server that answers.

    Attributes:
        url: of its root.
        processes: by name, their ids.
    """

    url: str
    processes: dict[str, int]


@contextmanager
def server(workers: int, flags: list[str]) -> Iterator[Server]:
    """Starts one, and ends it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "server", "--port=0", f"--http-workers={workers}", *flags],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    reader = None
    try:
        url, processes, up, ready = "", {"model": process.pid}, 0, False
        while not (url and ready and up == workers):
            line = process.stderr.readline()
            if not line:
                raise SystemExit(f"the server ended with {process.wait()}")
            event = json.loads(line)
            url = event.get("url", url)
            ready = ready or event["event"] == "ready"
            up += event["event"] == UP_EVENT
            if event["event"] == "http_worker_started":
                processes[event["name"]] = event["pid"]
        # A log that nobody reads fills its pipe, and the server would wait.
        reader = threading.Thread(target=process.stderr.read, daemon=True)
        reader.start()
        yield Server(url, processes)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        if reader:
            reader.join()
        process.stderr.close()


async def measure(running: Server, request: Request, clients: int, seconds: float) -> list[str]:
    """Rows of the table, one a process."""
    async with Client(running.url) as client:
        await closed_loop(client, in_turn([request]), clients=clients, seconds=1)
        before = {name: cpu_of(pid) for name, pid in running.processes.items()}
        load = await closed_loop(
            client, in_turn([request]), clients=clients, seconds=seconds, warm_s=0
        )
        after = {name: cpu_of(pid) for name, pid in running.processes.items()}
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
    parser.add_argument("--picture", type=Path, default=ROOT / "samples" / "smear_1.jpg")
    arguments, flags = parser.parse_known_args()
    if arguments.model:
        flags.append(f"--model={arguments.model.resolve()}")
    request = image_request("/detect", arguments.picture.read_bytes())
    print(f"{os.cpu_count()} CPUs, {arguments.clients} clients, {arguments.picture.name}\n")
    print("| HTTP workers | process | event loop, ms/image | other threads | images/s |")
    print("|---|---|---|---|---|")
    for workers in arguments.workers:
        with server(workers, flags) as running:
            rows = run_light(measure(running, request, arguments.clients, arguments.seconds))
        print("\n".join(rows), flush=True)


if __name__ == "__main__":
    main()
