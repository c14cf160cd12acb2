"""(f) GPU memory after the warm-up and after a soak of varied batches."""

import os
import random
from collections.abc import Generator

import numpy as np

from benchmarks.gpu.bench import Bench, Figures
from benchmarks.gpu.machine import reading
from benchmarks.load.usage import tree_usage

BATCHES = 10_000
NOTED = 100  # readings of a soak
RESERVE = 0.15  # of the time, before the end


def measure(bench: Bench) -> Generator[Figures]:
    """Batches of any size up to the largest in any input shape, until enough or time is up.

    This process holds nothing else on the GPU: what was in use before it is taken off.
    """

    def used() -> int:
        if not bench.on_gpu:
            return tree_usage(os.getpid()).rss_bytes
        found = reading(bench.job.device)
        if "used_bytes" not in found:
            raise RuntimeError("neither NVML nor nvidia-smi tells the GPU's memory in use")
        return int(found["used_bytes"])

    chance, largest = random.Random(0), bench.job.batches[-1]
    artifact = bench.artifact(bench.served)
    noise = np.random.default_rng(0).integers(0, 256, (largest, *artifact.metadata.input_hw, 3))
    noise = noise.astype(np.uint8)
    before = used()
    figures: Figures = {
        "of": "GPU memory in use" if bench.on_gpu else "resident memory of the process",
        "model": bench.served,
        "before_bytes": before,
        "largest_batch": largest,
    }
    # On a CPU the warm-up is one call: there it is by design that memory grows later.
    with bench.session(artifact, largest) as session:
        session.warm_up(range(1, largest + 1))
        warm = used()
        figures |= {"warm_bytes": warm, "batches": 0, "enough": False}
        yield figures
        until_s = bench.deadline.left_s * RESERVE
        noted = [warm]
        every = max(1, BATCHES // NOTED)
        done = 0
        while done < BATCHES and bench.deadline.left_s > until_s:
            height, width = chance.choice(artifact.metadata.buckets)
            some = noise[: chance.randint(1, largest), :height, :width]
            session.run(np.ascontiguousarray(some))
            done += 1
            if done % every == 0:
                noted.append(used())
        after = used()
    yield figures | {
        "batches": done,
        "after_bytes": after,
        "highest_bytes": max(*noted, after),
        "readings": noted,
        "relative_difference": relative_difference(before, warm, after),
        "enough": done > 0,
    }


def relative_difference(before: int, warm: int, after: int) -> float:
    """By how much of what the model holds its memory has changed.

    Args:
        before: bytes in use before the model was loaded, by whatever.
        warm: after its warm-up.
        after: after the soak.

    Raises:
        ValueError: the model holds nothing.
    """
    if warm <= before:
        raise ValueError(f"{warm} bytes after the warm-up, {before} before the model was loaded")
    return abs(after - warm) / (warm - before)
