"""Feeds damaged image files to the server's decoding, and says what escapes.

    python -m benchmarks.fuzz.images --inputs 200000 --seed 0

Each input goes the server's way from bytes to a letterboxed canvas, exactly and at reduced scale.
It may be refused as bad input, or give a canvas; anything else is a finding: another error, a
image over the pixel limit, a crash of the process, a hang, memory that grows past its bound,
more than 0.1 s of CPU for a KB that was sent.
Inputs follow from the seed alone; those with a finding are written to --keep. Exit code 1 if any.
"""

import argparse
import ctypes
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path

import cv2

from benchmarks.fuzz.mutations import damaged
from benchmarks.fuzz.seeds import seeds
from server.errors import BadInput
from server.inference.artifact import Metadata, read_metadata
from server.inference.detector import prepare_encoded
from server.inference.repository import DEFAULT_MODEL
from server.vision.decode import quiet_codecs, read_header

MAX_PIXELS = 1_000_000
# The dearest form (16-bit TIFF with alpha) takes 16 bytes a pixel; the rest is allocator.
MAX_GROWTH_MB = 64
MAX_S_PER_KB = 0.1
BUCKETS = ((32, 32), (32, 64), (64, 32), (64, 64))  # small: images of 128 pixels are reduced
_REPORT_EVERY = 50


@dataclass
class Outcome:
    """What a run found.

    Attributes:
        examined: how many inputs were looked at.
        accepted: of these, how many gave an image.
        findings: what escaped, by the number of the input.
        slowest_s: CPU seconds of the slowest input, both ways together.
        dearest_s: the most CPU seconds that an accepted input took for a KB (1,024 bytes, and at
            least one) that was sent.
        growth_mb: by how much a process' peak memory grew while it examined.
        peak_mb: the largest peak memory of a process.
    """

    examined: int = 0
    accepted: int = 0
    findings: dict[int, str] = field(default_factory=dict)
    slowest_s: float = 0.0
    dearest_s: float = 0.0
    growth_mb: float = 0.0
    peak_mb: float = 0.0


def small_metadata() -> Metadata:
    """The default model's description, with a smaller input."""
    return read_metadata(DEFAULT_MODEL / "yolov8n-fla-bccd.onnx").model_copy(
        update={"buckets": BUCKETS}
    )


def examine(data: bytes, metadata: Metadata) -> str:
    """Takes one file the server's way, twice.

    Returns:
        "accepted", "refused", or else what is wrong.
    """
    sizes: list[tuple[int, int] | None] = []
    for reduced in (False, True):
        try:
            prepared, _ = prepare_encoded(
                data, metadata, max_pixels=MAX_PIXELS, dct_scaling=reduced
            )
        except BadInput:
            sizes.append(None)
            continue
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        height, width = prepared.placed.original_hw
        if height * width > MAX_PIXELS:
            return f"{width} x {height} pixels came through"
        header = read_header(data)
        if sorted((height, width)) != sorted((header.height, header.width)):
            return f"{width} x {height} pixels, the header says {header.width} x {header.height}"
        if prepared.canvas.shape[:2] not in BUCKETS:
            return f"a canvas of {prepared.canvas.shape}"
        sizes.append((height, width))
    if sizes[0] != sizes[1]:
        return f"decoded exactly {sizes[0]}, at reduced scale {sizes[1]}"
    return "accepted" if sizes[0] else "refused"


def fuzz(
    *,
    inputs: int,
    seed: int,
    keep: Path,
    examine: Callable[[bytes, Metadata], str] = examine,
    timeout_s: float = 10.0,
) -> Outcome:
    """Examines inputs 0 to `inputs` - 1 in a process of their own, a new one after each crash.

    Args:
        inputs: how many.
        seed: the run.
        keep: folder for inputs with a finding; made when needed.
        examine: says what is wrong with one; a function that a new process can import.
        timeout_s: a process that is silent for so long is a hang, and ended; it reports after
            every 50 inputs.
    """
    outcome, context, first = Outcome(), get_context("spawn"), 0
    current = context.Value("q", 0, lock=False)
    while first < inputs:
        receiving, sending = context.Pipe(duplex=False)
        worker = context.Process(
            target=_work, args=(sending, current, examine, range(first, inputs), seed), daemon=True
        )
        current.value = first
        worker.start()
        sending.close()
        complete = _listen(receiving, outcome, timeout_s)
        worker.kill()
        worker.join()
        if complete:
            break
        number = current.value
        ended = "a hang" if complete is None else f"the process ended: {worker.exitcode}"
        outcome.findings[number] = ended
        first = number + 1
    images = seeds()
    for number in outcome.findings:
        keep.mkdir(parents=True, exist_ok=True)
        (keep / f"{seed}-{number}").write_bytes(damaged(images, seed, number))
    if outcome.growth_mb > MAX_GROWTH_MB:
        outcome.findings[-1] = f"memory grew by {outcome.growth_mb:.0f} MB"
    return outcome


def _listen(receiving: Connection, outcome: Outcome, timeout_s: float) -> bool | None:
    """Reads what a worker reports; True at its end, False if it died, None if it hangs."""
    try:
        receiving.recv()  # it has loaded its libraries
        while wait([receiving], timeout_s):
            examined, accepted, findings, slowest_s, dearest_s, growth_mb, peak_mb, last = (
                receiving.recv()
            )
            outcome.examined += examined
            outcome.accepted += accepted
            outcome.findings |= findings
            outcome.slowest_s = max(outcome.slowest_s, slowest_s)
            outcome.dearest_s = max(outcome.dearest_s, dearest_s)
            outcome.growth_mb = max(outcome.growth_mb, growth_mb)
            outcome.peak_mb = max(outcome.peak_mb, peak_mb)
            if last:
                return True
    except EOFError:
        return False
    return None


def _work(
    sending: Connection,
    current: ctypes.c_longlong,
    examine: Callable[[bytes, Metadata], str],
    numbers: range,
    seed: int,
) -> None:
    # libpng and libjpeg write to it for each broken file.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    quiet_codecs()
    cv2.setNumThreads(1)
    images, metadata = seeds(), small_metadata()
    for image in images:
        examine(image, metadata)
    at_start = _peak_mb()
    sending.send(None)
    since = numbers.start
    accepted, findings, slowest_s, dearest_s = 0, {}, 0.0, 0.0
    for number in numbers:
        current.value = number
        data = damaged(images, seed, number)
        said, took_s = _timed(examine, data, metadata)
        if took_s > MAX_S_PER_KB:  # once more: the machine may have been busy
            took_s = min(took_s, _timed(examine, data, metadata)[1])
        slowest_s = max(slowest_s, took_s)
        if said == "accepted":
            accepted += 1
            per_kb_s = took_s / max(1, len(data) / 1024)
            dearest_s = max(dearest_s, per_kb_s)
            if per_kb_s > MAX_S_PER_KB:
                findings[number] = f"over {MAX_S_PER_KB} s of CPU per KB"
        elif said != "refused":
            findings[number] = said
        last = number == numbers[-1]
        if last or number - since == _REPORT_EVERY:
            peak = _peak_mb()
            sending.send(
                (
                    number + 1 - since,
                    accepted,
                    findings,
                    slowest_s,
                    dearest_s,
                    peak - at_start,
                    peak,
                    last,
                )
            )
            since, accepted, findings = number + 1, 0, {}


def _timed(
    examine: Callable[[bytes, Metadata], str], data: bytes, metadata: Metadata
) -> tuple[str, float]:
    started = time.process_time()
    said = examine(data, metadata)
    return said, time.process_time() - started


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(arguments: list[str] | None = None) -> int:
    """Runs and prints; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fuzz.images",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--inputs", type=int, default=20_000, help="how many; default 20000")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other inputs")
    parser.add_argument("--timeout-s", type=float, default=10.0, help="longer is a hang")
    parser.add_argument(
        "--keep", type=Path, default=Path("runs/fuzz"), help="folder for inputs with a finding"
    )
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    outcome = fuzz(
        inputs=options.inputs, seed=options.seed, keep=options.keep, timeout_s=options.timeout_s
    )
    took_s = time.perf_counter() - started
    print(
        f"{outcome.examined} inputs in {took_s:.0f} s: {outcome.accepted} gave an image, "
        f"{len(outcome.findings)} findings\n"
        f"slowest input {outcome.slowest_s * 1e3:.0f} ms of CPU, dearest accepted "
        f"{outcome.dearest_s * 1e3:.0f} ms per KB; peak memory "
        f"{outcome.peak_mb:.0f} MB, {outcome.growth_mb:.0f} MB over the undamaged files"
    )
    for number, said in outcome.findings.items():
        print(f"input {number}: {said}")
    return 1 if outcome.findings else 0


if __name__ == "__main__":
    sys.exit(main())
