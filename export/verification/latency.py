"""How long one image takes on this machine's CPU."""

import statistics
import time

import numpy as np

from server.host import available_cpus, cpu_name
from server.inference.artifact import Artifact
from server.inference.certificate import Latency
from server.inference.session import Session

ROUNDS = 15
# A server has run batches before. Until it has, glibc gives memory back to the kernel after every
# run and fetches it anew, which cost int8 a fifth of its time and float32 a fiftieth.
WARM_UP_BATCH = 8
LIMIT_S = 10.0  # for all rounds; a large network gets fewer of them
FEWEST_ROUNDS = 3


def measure_latency(artifact: Artifact, fp32: Artifact) -> Latency:
    """Runs the largest shape in a batch of one, the two files in turns.

    Args:
        artifact: a stamped file.
        fp32: the same network in float32; may be the same file.
    """
    height, width = artifact.metadata.buckets[0]
    # Noise: on a plain image a network may meet zeros that other images don't have.
    images = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
    same = artifact.path == fp32.path
    sessions = [Session.open(file, device="cpu") for file in ([fp32] if same else [artifact, fp32])]
    times_s: list[list[float]] = [[] for _ in sessions]
    started = time.perf_counter()
    try:
        for session in sessions:
            session.run(np.repeat(images, WARM_UP_BATCH, axis=0))
            session.run(images)
        for round_ in range(ROUNDS):
            if round_ >= FEWEST_ROUNDS and time.perf_counter() - started > LIMIT_S:
                break
            for session, times in zip(sessions, times_s, strict=True):
                before = time.perf_counter()
                session.run(images)
                times.append(time.perf_counter() - before)
    finally:
        for session in sessions:
            session.close()
    medians_ms = [1e3 * statistics.median(times) for times in times_s]
    return Latency(
        cpu=cpu_name(),
        threads=available_cpus(),
        input_hw=(height, width),
        median_ms=round(medians_ms[0], 3),
        fp32_median_ms=round(medians_ms[-1], 3),
    )
