"""Batches of all shapes and sizes through one model, and the memory before, between and after.

    python -m tests.support.gpu_soak --device cuda:0 --calls plain --batches 10000

Prints JSON. A process of its own, so that nothing but the model is in the memory that is compared.
"""

import argparse
import json
import time
from typing import Any

import numpy as np

from server.inference.engine import Engine
from server.inference.repository import load_model
from tests.support.gpu_machine import reading
from tests.support.gpu_sessions import BATCH_SIZE, CALLS, Calls
from tests.support.sample_images import REPO, batch_of

LOOKS = 20  # at the memory, on the way


def soak(device: str, calls: Calls, batches: int) -> dict[str, Any]:
    """Runs batches of random shape and size.

    Returns:
        used: bytes before the model, when it is warm, and after the batches; on_the_way: those
        between; batches, images, seconds; provider.
    """
    used = reading(device)
    before = used()
    engine = Engine.open(
        load_model(REPO / "weights"),
        device=device,
        max_batch_size=BATCH_SIZE,
        cuda_graphs=calls == "graphs",
    )
    engine.warm_up()
    metadata = engine.artifact.metadata
    full = [batch_of(metadata, hw, BATCH_SIZE) for hw in metadata.buckets]
    # As many threads as in the server: one. All shapes once more, as the server would have by now.
    for images in full:
        for size in range(1, BATCH_SIZE + 1):
            engine.run(images[:size])
    warm = used()
    rng = np.random.default_rng(0)
    shapes, sizes = (
        rng.integers(0, len(full), batches),
        rng.integers(1, BATCH_SIZE + 1, batches),
    )
    on_the_way, started = [], time.perf_counter()
    for i, (shape, size) in enumerate(zip(shapes, sizes, strict=True)):
        engine.run(full[shape][:size])
        if i % max(1, batches // LOOKS) == 0:
            on_the_way.append(used())
    took_s = time.perf_counter() - started
    return {
        "provider": engine.provider,
        "precision": metadata.precision,
        "calls": calls,
        "batches": batches,
        "images": int(sizes.sum()),
        "seconds": round(took_s, 3),
        "before": before,
        "warm": warm,
        "after": used(),
        "on_the_way": on_the_way,
    }


def grown(seen: dict[str, Any]) -> float:
    """By what share of the model's memory more is used after the batches."""
    return float((seen["after"] - seen["warm"]) / (seen["warm"] - seen["before"]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--calls", choices=CALLS, default="plain")
    parser.add_argument("--batches", type=int, default=10_000)
    arguments = parser.parse_args()
    print(json.dumps(soak(arguments.device, arguments.calls, arguments.batches)))
