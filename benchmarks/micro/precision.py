"""Artifacts against each other, one image at a time, through the session that serves them.

    python -m benchmarks.micro.precision FP32.onnx INT8.onnx [FP16.onnx ...] --threads 2

The artifacts take turns on the same image and the same input shape. What counts is how many
times as fast as the first one each is within a round: what else the machine does slows all of it.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.verification.latency import WARM_UP_BATCH
from server.errors import ServerError
from server.host import available_cpus, cpu_name
from server.inference.artifact import Artifact, load_artifact
from server.inference.session import Session


def shared_bucket(artifacts: Sequence[Artifact], wanted: str | None) -> tuple[int, int]:
    """The (height, width) to measure at: as wanted, or the first artifact's largest.

    Raises:
        ValueError: an artifact has no such bucket.
    """
    bucket = artifacts[0].metadata.buckets[0]
    if wanted is not None:
        try:
            height, width = map(int, wanted.split("x"))
        except ValueError:
            raise ValueError(f"--bucket {wanted}: HEIGHTxWIDTH is expected") from None
        bucket = height, width
    for artifact in artifacts:
        if bucket not in artifact.metadata.buckets:
            raise ValueError(
                f"{artifact.path} has no bucket {bucket[0]}x{bucket[1]}; it has "
                + ", ".join(f"{height}x{width}" for height, width in artifact.metadata.buckets)
            )
    return bucket


def round_ms(session: Session, images: NDArray[np.uint8], repeats: int) -> float:
    """Median milliseconds of one run."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        session.run(images)
        times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times)


def measure(
    artifacts: Sequence[Artifact],
    bucket_hw: tuple[int, int],
    *,
    threads: int,
    rounds: int,
    repeats: int,
) -> list[dict[str, Any]]:
    """One row an artifact: median time, and how many times as fast as the first it is."""
    # Noise: on a plain image float32 would meet more zeros than in use.
    images = np.random.default_rng(0).integers(0, 256, (1, *bucket_hw, 3), np.uint8)
    # They can live side by side: the threads of the serving session don't spin when idle.
    sessions = [Session.open(artifact, device="cpu", threads=threads) for artifact in artifacts]
    try:
        for session in sessions:
            session.run(images.repeat(WARM_UP_BATCH, axis=0))
        times = [
            [round_ms(session, images, repeats) for session in sessions] for _ in range(rounds)
        ]
    finally:
        for session in sessions:
            session.close()
    rows = []
    for i, artifact in enumerate(artifacts):
        ratios = [of_round[0] / of_round[i] for of_round in times]
        rows.append(
            {
                "file": artifact.path.name,
                "precision": artifact.metadata.precision,
                "file_bytes": artifact.path.stat().st_size,
                "median_ms": statistics.median(of_round[i] for of_round in times),
                "times_as_fast": statistics.median(ratios),
                "lowest": min(ratios),
                "highest": max(ratios),
            }
        )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a person reads them."""
    width = max(len("artifact"), *(len(row["file"]) for row in rows)) + 2
    lines = [f"{'artifact':<{width}}{'precision':<11}{'file':>9}{'median':>11}  times as fast"]
    for row in rows:
        spread = f"({row['lowest']:.2f} to {row['highest']:.2f})"
        lines.append(
            f"{row['file']:<{width}}{row['precision']:<11}{row['file_bytes'] / 1e6:>6.1f} MB"
            f"{row['median_ms']:>8.2f} ms  {row['times_as_fast']:.2f} {spread}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, and prints a row for each artifact."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.micro.precision", description=__doc__.splitlines()[0]
    )
    parser.add_argument("artifacts", type=Path, nargs="+", metavar="ARTIFACT.onnx")
    parser.add_argument("--bucket", metavar="HxW", help="input shape; the largest by default")
    parser.add_argument("--threads", type=int, default=available_cpus())
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--repeats", type=int, default=20, help="runs a round")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures here too")
    options = parser.parse_args(arguments)
    if min(options.threads, options.rounds, options.repeats) < 1:
        parser.error("--threads, --rounds and --repeats are at least 1")
    try:
        artifacts = [load_artifact(path) for path in options.artifacts]
        bucket_hw = shared_bucket(artifacts, options.bucket)
    except (ServerError, ValueError) as error:
        sys.exit(f"precision: {error}")
    rows = measure(
        artifacts,
        bucket_hw,
        threads=options.threads,
        rounds=options.rounds,
        repeats=options.repeats,
    )
    import onnxruntime  # not before the session has told it to send no telemetry

    machine = {
        "cpu": cpu_name(),
        "threads": options.threads,
        "onnxruntime": onnxruntime.__version__,
        "input_hw": bucket_hw,
    }
    print(f"{machine['cpu']}, {options.threads} threads, {bucket_hw[0]}x{bucket_hw[1]}, batch 1")
    print(table(rows))
    if options.json:
        options.json.write_text(
            json.dumps({"machine": machine, "artifacts": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
