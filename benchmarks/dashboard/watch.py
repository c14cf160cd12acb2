"""A server under load, and the Prometheus that watches it."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.dashboard.prometheus import Prometheus, find_prometheus, prometheus
from benchmarks.load.contestants import Thresholds, ours
from benchmarks.load.http_client import Request, image_request
from benchmarks.load.loops import Load, closed_load, run_light
from benchmarks.load.process import free_port, running

RATE_INTERVAL = "1m"  # what Grafana makes of the shipped scrape interval of 15 s
BROKEN_EVERY = 50  # requests, one of which is no image


@dataclass(frozen=True, slots=True)
class Watched:
    """What was done, and who saw it.

    Attributes:
        prometheus: has scraped everything.
        server: HOST:PORT of the server: its `instance`.
        load: what the clients saw.
        ended_s: when the load ended, in seconds since the epoch.
    """

    prometheus: Prometheus
    server: str
    load: Load
    ended_s: float


@contextmanager
def watched(
    model: Path,
    images: Sequence[bytes],
    *,
    clients: int,
    seconds: float,
    interval_s: float,
    others: Sequence[str] = (),
) -> Iterator[Watched]:
    """Starts server and Prometheus, puts load on the server, and waits until all is scraped.

    Args:
        model: a file, or a folder of one model in several precisions.
        images: JPEG files.
        clients: that ask all the time.
        seconds: of load.
        interval_s: between scrapes.
        others: HOST:PORT of more targets.

    Raises:
        PrometheusMissing, DidNotStart: one of both can't be started.
    """
    find_prometheus()  # before anything is started
    contestant = ours(model, Thresholds(), free_port())
    requests = mixture(contestant.path, images)
    with running(contestant, requests[0]) as server:
        address = urlsplit(server.url).netloc
        with prometheus([address, *others], interval_s) as watcher:
            watcher.until_scraped(1)
            began_s = time.time()
            load = run_light(
                closed_load(server.url, requests, clients=clients, seconds=seconds, warm_s=0)
            )
            watcher.until_scraped(2)  # the first may have begun before the last answer
            yield Watched(watcher, address, load, began_s + seconds)


def mixture(path: str, images: Sequence[bytes]) -> list[Request]:
    """Requests to be sent in turn: images, and now and then what is none."""
    sound = [image_request(path, image) for image in images]
    rounds = [sound[i % len(sound)] for i in range(BROKEN_EVERY - 1)]
    return [*rounds, image_request(path, b"no image", name="broken")]
