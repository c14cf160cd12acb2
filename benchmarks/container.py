"""A container of the server: image size, time until it is ready, memory at rest and under load.

    .venv/bin/python -m benchmarks.container --image yolov8-fla:cpu

Starts the image several times, hardened and with 1 GB of memory, and puts load on each. Two times
are told: from the tool's command, and from the start of the container's process, which leaves out
what the tool needs to prepare it. What follows the flags goes to the tool's `run` (`--cpus=2`).
"""

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.container_engine import Engine, ready
from benchmarks.figures import print_spread
from benchmarks.load.http_client import image_request
from benchmarks.load.loops import closed_load, run_light
from benchmarks.load.summary import Summary, summarize

ROOT = Path(__file__).resolve().parents[1]


def measure(
    engine: Engine, image: str, flags: Sequence[str], clients: int, seconds: float
) -> dict[str, float]:
    """Figures of one container, from its start to its end.

    Args:
        engine: the container tool.
        image: its tag.
        flags: more flags of `run`.
        clients: of the load.
        seconds: of the load.
    """
    commanded = datetime.now(UTC)
    with ready(engine, image, *flags) as (container, client):
        (event,) = container.events("ready")
        is_ready = datetime.fromisoformat(event["timestamp"])
        begun = datetime.fromisoformat(container.state()["StartedAt"])
        at_rest, _ = container.memory_bytes()
        load = put_load(str(client.base_url), clients, seconds)
        under_load, peak = container.memory_bytes()
        wrong = load.statuses.keys() - {"200"}
        if wrong or container.state()["OOMKilled"]:
            raise SystemExit(f"under load it answered {load.statuses}: {container.state()}")
        return {
            "command to ready, s": (is_ready - commanded).total_seconds(),
            "process to ready, s": (is_ready - begun).total_seconds(),
            "memory when ready, MB": at_rest / 1e6,
            "memory under load, MB": under_load / 1e6,
            "most memory, MB": peak / 1e6,
            "images/s": load.images_per_s,
        }


def put_load(url: str, clients: int, seconds: float) -> Summary:
    """The sample images, again and again."""
    images = sorted((ROOT / "samples").glob("*.jpg"))
    requests = [image_request("/detect", each.read_bytes()) for each in images]
    return summarize(run_light(closed_load(url, requests, clients=clients, seconds=seconds)))


def main() -> None:
    """Prints minimum, median and maximum of each figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", default="yolov8-fla:cpu")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments, flags = parser.parse_known_args()
    engine = Engine.find(ROOT)
    size = engine.inspect_image(arguments.image)["Size"]
    print(f"{arguments.image}: {size / 1e6:.0f} MB, {arguments.runs} runs")
    runs = [
        measure(engine, arguments.image, flags, arguments.clients, arguments.seconds)
        for _ in range(arguments.runs)
    ]
    print_spread(runs)


if __name__ == "__main__":
    main()
