"""One process that makes load, told what to do line by line; `generators` starts several.

    python -m benchmarks.load.generator

The first line it reads says where to and with what; every other one is a load. It answers each with
a line. A load begins at a moment of `time.perf_counter`, which the processes of a machine share.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.load.http_client import Answer, Request, image_request
from benchmarks.load.loops import Load, closed_load, poisson_load, run_light

SLACK = 0.2  # share of the boxes; one more or less is always right: a batch changes the last bits


def about(count: int) -> Callable[[Answer], str | None]:
    """A check on the number of boxes, at no JSON parser's cost."""
    most_off = max(1.0, SLACK * count)

    def check(answer: Answer) -> str | None:
        boxes = answer.body.count(b'"class_id"')
        return None if abs(boxes - count) <= most_off else "other number of boxes"

    return check


def requests_of(start: Mapping[str, Any]) -> list[Request]:
    """The images as requests, from where this process begins."""
    requests = [
        image_request(start["path"], Path(image).read_bytes(), about(count))
        for image, count in zip(start["images"], start["counts"], strict=True)
    ]
    first = start["first"] % len(requests)
    return requests[first:] + requests[:first]


async def load(url: str, requests: Sequence[Request], order: Mapping[str, Any]) -> Load:
    """Makes one load; `warm_s` begins at `begin_s`."""
    await asyncio.sleep(max(0.0, order["begin_s"] - time.perf_counter()))
    loop = closed_load if "clients" in order else poisson_load
    return await loop(url, requests, **{k: v for k, v in order.items() if k != "begin_s"})


def packed(made: Load) -> dict[str, Any]:
    """A load as JSON can carry it."""
    return {
        "window_s": made.window_s,
        "open_loop": made.open_loop,
        "generator_cpu_s": made.generator_cpu_s,
        "outcomes": [
            (e.intended_s, e.started_s, e.ended_s, e.status, e.images, e.error)
            for e in made.outcomes
        ],
    }


def main() -> None:
    """Serves until standard input ends."""
    # Where Python does not buffer its own streams (PYTHONUNBUFFERED), what does not fit into the
    # pipe at once may be lost without a word.
    out = os.fdopen(os.dup(1), "w")

    def answer(line: object) -> None:
        out.write(json.dumps(line) + "\n")
        out.flush()

    start = json.loads(sys.stdin.readline())
    requests = requests_of(start)
    answer("ready")
    for line in sys.stdin:
        answer(packed(run_light(load(start["url"], requests, json.loads(line)))))


if __name__ == "__main__":
    main()
