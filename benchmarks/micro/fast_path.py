"""Where the time of one image goes, stage by stage, without HTTP.

    python -m benchmarks.micro.fast_path [--rounds 100]

For the default artifact on the CPU: a 640 x 480 and a 1280 x 720 JPEG, and one of 4000 x 3000, all
made from an image of samples/. Prints the median of each stage in milliseconds; a lone request
costs the sum of one of each. At last NMS alone, of 1,000 candidates that all pass.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from server.api.body import Upload
from server.api.responses import detections_json
from server.errors import BadInput
from server.host import available_cpus
from server.inference.detector import finish, prepare_encoded
from server.inference.repository import DEFAULT_MODEL, load_model, select_variant
from server.inference.session import Session
from server.serving.pipeline import Found
from server.vision.nms import DetectParameters, nms

IMAGE = Path(__file__).resolve().parents[2] / "samples" / "smear_1.jpg"
SIZES = ((640, 480), (1280, 720), (4000, 3000))
MAX_PIXELS = 50_000_000


def encoded_image(width: int, height: int) -> bytes:
    """A JPEG of the sample, cut to the aspect ratio and scaled."""
    image = cv2.imread(str(IMAGE), cv2.IMREAD_COLOR)
    assert image is not None, f"{IMAGE} is missing"
    rows = min(image.shape[0], image.shape[1] * height // width)
    image = cv2.resize(image[:rows], (width, height), interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()


def median_ms(work: Callable[[], object], rounds: int) -> float:
    """Median wall time of one call, after one that does not count."""
    work()
    took = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        took.append(time.perf_counter() - started)
    return statistics.median(took) * 1e3


def stages(data: bytes, model: Path, rounds: int) -> dict[str, float]:
    """Milliseconds by stage of one encoded image."""
    artifact = select_variant(load_model(model), "cpu").artifact
    metadata = artifact.metadata
    found: dict[str, float] = {}
    for name, reduced in (("exactly", False), ("reduced", True)):
        times = [
            prepare_encoded(data, metadata, max_pixels=MAX_PIXELS, dct_scaling=reduced)[1]
            for _ in range(rounds)
        ]
        found[f"decode {name}"] = statistics.median(each["decode"] for each in times) * 1e3
        found[f"letterbox {name}"] = statistics.median(each["letterbox"] for each in times) * 1e3
    prepared, _ = prepare_encoded(data, metadata, max_pixels=MAX_PIXELS, dct_scaling=True)
    batch = prepared.canvas[None]
    one = Session.open(artifact, device="cpu", threads=1)
    found["inference, 1 thread"] = median_ms(lambda: one.run(batch), rounds)
    every = Session.open(artifact, device="cpu", threads=available_cpus(), spinning=True)
    found[f"inference, {available_cpus()} threads"] = median_ms(lambda: every.run(batch), rounds)
    candidates = one.run(batch)[0]
    anchors = metadata.anchors(prepared.bucket_hw)
    for conf in (0.25, 0.001):
        parameters = DetectParameters(conf=conf)
        detections = finish(candidates, prepared, metadata, parameters)
        outcomes: Sequence[Found | BadInput] = [Found(detections, {})]
        upload = [Upload("a.jpg", data)]
        count = f"{len(detections.detections.scores)} boxes"
        found[f"NMS, conf {conf}"] = median_ms(
            partial(nms, candidates, parameters, anchors=anchors), rounds
        )
        found[f"JSON, conf {conf} ({count})"] = median_ms(
            partial(detections_json, artifact, upload, outcomes, {}), rounds
        )
    return found


def worst_nms(rounds: int) -> dict[str, float]:
    """Milliseconds of NMS alone, by how 1,000 candidates lie, at conf 0.001 and 300 detections."""
    random = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.arange(40), np.arange(25)), -1).reshape(-1, 2) * 12.0
    spread = random.uniform(0, 600, (1000, 2))
    lying = {
        "apart": np.concatenate([grid, grid + 10], axis=1),
        "at random": np.concatenate([spread, spread + random.uniform(4, 120, (1000, 2))], axis=1),
        "in one place": np.tile([0.0, 0.0, 9.0, 9.0], (1000, 1)),
    }
    scores = np.linspace(0.9, 0.002, 1000)
    found = {}
    for name, boxes in lying.items():
        table = np.column_stack([boxes, scores, np.zeros(1000)]).astype(np.float32)
        work = partial(nms, table, DetectParameters(conf=0.001), anchors=8400)
        found[f"NMS of 1,000, {name}"] = median_ms(work, rounds)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.micro.fast_path", description=__doc__
    )
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="the artifact")
    parser.add_argument("--rounds", type=int, default=100, help="of each stage; default 100")
    options = parser.parse_args(arguments)
    cv2.setNumThreads(1)
    for width, height in SIZES:
        data = encoded_image(width, height)
        print(f"{width} x {height}, {len(data) / 1e3:.0f} KB")
        show(stages(data, options.model, options.rounds))
    print("conf 0.001, one class")
    show(worst_nms(options.rounds))


def show(times_ms: Mapping[str, float]) -> None:
    """Prints one line a stage."""
    for stage, ms in times_ms.items():
        print(f"  {stage:<32}{ms:8.3f} ms")


if __name__ == "__main__":
    main()
