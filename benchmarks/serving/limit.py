"""The limit: the server's own decode, letterbox, inferences and NMS in one process without HTTP.

    python -m benchmarks.serving.limit --model MODEL.onnx --images FOLDER --lone

Prints one JSON object: images/s and CPU milliseconds an image by arrangement, or the median
latency of one image at a time. An arrangement is INSTANCESxTHREADSxBATCHxFEEDERS: inferences side
by side, threads and images of each, and threads that decode, call and finish. Where feeders are
more than instances, the model waits for no decoder.
"""

import argparse
import itertools
import json
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import cv2
import numpy as np

from benchmarks.load.summary import percentile
from server.host import available_cpus
from server.inference.artifact import Metadata, load_artifact
from server.inference.detector import Prepared, finish, prepare_encoded
from server.inference.engine import OpenSession
from server.inference.session import Session
from server.vision.nms import DetectParameters

MAX_PIXELS = 50_000_000


@dataclass(frozen=True, slots=True)
class LimitArrangement:
    """See the module; all >= 1."""

    instances: int
    threads: int
    batch: int
    feeders: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads what `str` gives."""
        instances, threads, batch, feeders = map(int, text.split("x"))
        return cls(instances, threads, batch, feeders)

    def __str__(self) -> str:
        """Such as 2x1x1x2."""
        return f"{self.instances}x{self.threads}x{self.batch}x{self.feeders}"


def arrangements(cpus: int) -> list[LimitArrangement]:
    """Those worth a trial: one-thread instances for all CPUs, or one with all threads; batches."""
    all_instances = [
        LimitArrangement(cpus, 1, batch, cpus + more) for batch in (1, 2, 4) for more in (0, 1)
    ]
    one_instance = [LimitArrangement(1, cpus, batch, 2) for batch in (1, 2, 4)]
    return all_instances + one_instance


class Rate(NamedTuple):
    """What one arrangement does."""

    images_per_s: float
    cpu_ms_per_image: float


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Encoded images to detections, with some sessions' threads.

    Attributes:
        model: the artifact's file.
        images: encoded; used in turn.
        parameters: of the NMS.
    """

    model: Path
    images: Sequence[bytes]
    parameters: DetectParameters

    def rate(self, arrangement: LimitArrangement, seconds: float, warm_s: float) -> Rate:
        """What passes in a window of so many seconds, after `warm_s`."""
        artifact = load_artifact(self.model)
        session = Session.open(artifact, device="cpu", threads=arrangement.threads)
        session.warm_up([arrangement.batch])
        return self.rate_of(session, artifact.metadata, arrangement, seconds, warm_s)

    def rate_of(
        self,
        session: OpenSession,
        metadata: Metadata,
        arrangement: LimitArrangement,
        seconds: float,
        warm_s: float,
    ) -> Rate:
        """The same with a session that is open; the arrangement's threads are not looked at."""
        instances = threading.Semaphore(arrangement.instances)
        next_image = itertools.cycle(self.images).__next__
        taking, stop = threading.Lock(), threading.Event()
        done = [0] * arrangement.feeders
        # Images of one bucket share a batch; with batches of 1 none ever waits here.
        waiting: dict[tuple[int, int], list[Prepared]] = {}

        def next_batch() -> list[Prepared]:
            while True:
                with taking:
                    encoded = next_image()
                prepared = self._prepare(encoded, metadata)
                with taking:
                    same = waiting.setdefault(prepared.bucket_hw, [])
                    same.append(prepared)
                    if len(same) == arrangement.batch:
                        return waiting.pop(prepared.bucket_hw)

        def feed(i: int) -> None:
            while not stop.is_set():
                batch = next_batch()
                stacked = np.stack([each.canvas for each in batch])
                with instances:
                    candidates = session.run(stacked)
                for rows, each in zip(candidates, batch, strict=True):
                    finish(rows, each, metadata, self.parameters)
                done[i] += len(batch)

        with ThreadPoolExecutor(arrangement.feeders) as feeders:
            feeding = [feeders.submit(feed, i) for i in range(arrangement.feeders)]
            try:
                time.sleep(warm_s)
                begin = sum(done), time.perf_counter(), time.process_time()
                time.sleep(seconds)
                end = sum(done), time.perf_counter(), time.process_time()
            finally:
                stop.set()
            for each in feeding:
                each.result()
        images, took_s, cpu_s = (after - before for before, after in zip(begin, end, strict=True))
        return Rate(images / took_s, 1e3 * cpu_s / max(1, images))

    def lone_ms(self, seconds: float, warm_s: float, *, spinning: bool) -> float:
        """Median milliseconds from an image's bytes to its detections, one at a time."""
        artifact = load_artifact(self.model)
        session = Session.open(artifact, device="cpu", threads=available_cpus(), spinning=spinning)
        session.warm_up([1])
        times_ms: list[float] = []
        begin_s = time.perf_counter() + warm_s
        for encoded in itertools.cycle(self.images):
            started_s = time.perf_counter()
            if started_s >= begin_s + seconds:
                break
            prepared = self._prepare(encoded, artifact.metadata)
            (candidates,) = session.run(prepared.canvas[None])
            finish(candidates, prepared, artifact.metadata, self.parameters)
            if started_s >= begin_s:
                times_ms.append(1e3 * (time.perf_counter() - started_s))
        return percentile(sorted(times_ms), 50)

    def _prepare(self, encoded: bytes, metadata: Metadata) -> Prepared:
        return prepare_encoded(encoded, metadata, max_pixels=MAX_PIXELS, dct_scaling=True)[0]


def main() -> None:
    """Prints the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True, help="folder of JPEGs")
    parser.add_argument("--arrangement", type=LimitArrangement.parse, action="append")
    parser.add_argument("--lone", action="store_true", help="latency of one image at a time")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--warm-s", type=float, default=1.0)
    parser.add_argument("--conf", type=float, default=0.25)
    parser.add_argument("--max-det", type=int, default=300)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)  # as in the server: images side by side, one thread each
    images = [path.read_bytes() for path in sorted(arguments.images.glob("*.jpg"))]
    parameters = DetectParameters(conf=arguments.conf, max_det=arguments.max_det)
    pipeline = Pipeline(arguments.model, images, parameters)
    seconds, warm_s = arguments.seconds, arguments.warm_s
    if arguments.lone:
        waits = {
            "spinning": pipeline.lone_ms(seconds / 2, warm_s, spinning=True),
            "not spinning": pipeline.lone_ms(seconds / 2, warm_s, spinning=False),
        }
        print(json.dumps(waits))
        return
    tried = arguments.arrangement or arrangements(available_cpus())
    rates = {str(each): pipeline.rate(each, seconds, warm_s)._asdict() for each in tried}
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
