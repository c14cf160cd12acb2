"""One part of the GPU benchmark, in a process of its own: what breaks in it breaks nothing else.

    python -m benchmarks.gpu.part NAME < JOB.json

Prints a line of JSON for all that it has so far, after each measurement, and at the end
`{"status": ...}`. A CUDA context that met an error never recovers in its process, and a kernel that
hangs can't be stopped: so this one ends with it.
"""

import importlib
import json
import os
import signal
import sys
from collections.abc import Callable, Generator
from typing import IO, Any

from benchmarks.gpu.bench import Bench, Figures, Job
from benchmarks.gpu.record import finite

# In the order in which they are measured: the module that has `measure`, the letter in the issue's
# list, and the share of the time.
PARTS: dict[str, tuple[str, str, float]] = {
    "parity": ("benchmarks.gpu.parity", "", 15),
    "raw": ("benchmarks.gpu.raw", "a", 60),
    "tensorrt": ("benchmarks.gpu.tensorrt", "a", 20),
    "options": ("benchmarks.gpu.sweep", "a", 95),
    "pipeline": ("benchmarks.gpu.pipeline", "b", 45),
    "server": ("benchmarks.gpu.server", "c", 110),
    "fla": ("benchmarks.gpu.fla", "d", 40),
    "block": ("benchmarks.gpu.block", "d", 35),
    "kernels": ("benchmarks.gpu.kernels", "e", 25),
    "memory": ("benchmarks.gpu.memory", "f", 40),
}
MACHINE = "machine"  # comes before all others
MODULES = {MACHINE: "benchmarks.gpu.machine"} | {name: part[0] for name, part in PARTS.items()}
# Without it a node's time is that of handing the work to the GPU: ONNX Runtime's wheel is built
# without the profiler of kernels.
ENVIRONMENT = {"kernels": {"CUDA_LAUNCH_BLOCKING": "1"}}


def run(measure: Callable[[Bench], Generator[Figures]], bench: Bench, out: IO[str]) -> str:
    """Measures until all is there or time is up; returns the status."""

    def write(line: dict[str, Any]) -> None:
        out.write(json.dumps(finite(line), allow_nan=False) + "\n")
        out.flush()

    status = "complete"
    measuring = measure(bench)
    for figures in measuring:
        write({"figures": figures})
        if bench.deadline.left_s < 0:
            # A part that only had more rounds in mind has what it wants.
            status = "complete" if figures.get("enough") else "cut short"
            measuring.close()
            break
    write({"status": status})
    return status


def main() -> None:
    """Measures the part that the command line names."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    # What ONNX Runtime and servers print must not get among the lines.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def ended(*_: object) -> None:
        raise SystemExit(143)  # servers and generators that it started are ended on the way

    signal.signal(signal.SIGTERM, ended)
    job = Job.of(json.loads(sys.stdin.read()))
    import cv2

    cv2.setNumThreads(1)  # as in the server
    run(importlib.import_module(MODULES[sys.argv[1]]).measure, Bench(job), out)


if __name__ == "__main__":
    main()
