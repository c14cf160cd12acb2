"""Trains, exports and measures one network of the ablation."""

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from ultralytics.nn.tasks import DetectionModel

from benchmarks.attention.training_curve import read_run
from export.pipeline import Request, export
from export.sources.source import Origin
from export.verification.images import MAX_PIXELS
from export.verification.yolo_dataset import read_dataset
from model.info import gflops
from model.registration import architecture, register
from model.train import train
from server.inference.artifact import Artifact
from server.inference.detector import prepare_image
from server.inference.session import Session
from server.vision.decode import decode

WARM_UP_RUNS = 5


def stages_of(recipe: Path) -> list[dict[str, Any]]:
    """The stages of a recipe."""
    stages: list[dict[str, Any]] = yaml.safe_load(recipe.read_text())["stages"]
    return stages


def train_run(folder: Path, arch: str, seed: int, data: Path, recipe: Path) -> None:
    """Trains into a folder, or goes on where a training in it was interrupted."""
    stages = [stage | {"seed": seed} for stage in stages_of(recipe)]
    train(arch, data, stages, folder, resume=(folder / "stage_1").exists())


def check_recipe(folder: Path, seed: int, stages: Sequence[Mapping[str, Any]]) -> None:
    """Raises ValueError where a run was not trained by the recipe with that seed."""
    for number, stage in enumerate(stages, 1):
        noted = folder / f"stage_{number}" / "args.yaml"
        used = yaml.safe_load(noted.read_text())
        for name, value in {**stage, "seed": seed}.items():
            if name != "amp" and used[name] != value:  # of that one the trainer notes another
                raise ValueError(f"{noted}: {name} is {used[name]}, in the recipe {value}")


def export_run(checkpoint: Path, output: Path, imgsz: int, data: Path) -> Artifact:
    """The checkpoint's artifact; its certificate holds the accuracy on the validation images."""
    return export(Request(Origin(checkpoint), output, imgsz=imgsz, data=data))


def accuracy_of(artifact: Artifact) -> dict[str, float]:
    """COCO's mAP50-95 and mAP50, 0..1, through the letterbox, session and NMS of the server."""
    accuracy = artifact.metadata.certificate.accuracy
    assert accuracy is not None  # the export had labels
    return {"map50_95": accuracy.artifact_map50_95, "map50": accuracy.artifact_map50}


def curve_of(folder: Path) -> dict[str, list[float]]:
    """Validation of each epoch, as ultralytics measured it during training."""
    points = read_run(folder.name, folder)
    return {
        "map50_95": [point.map50_95 for point in points],
        "map50": [point.map50 for point in points],
    }


def size_of(arch: str, classes: int, imgsz: int) -> dict[str, float]:
    """Parameters, and GFLOPs of one square image, of an architecture with that many classes."""
    register()
    model = DetectionModel(architecture(arch) | {"nc": classes}, verbose=False)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "gflops": gflops(model, imgsz),
    }


def latencies(
    artifacts: Mapping[str, Artifact], image: Path, rounds: int, threads: int
) -> dict[str, dict[str, float]]:
    """Times of the served session for one image; the architectures take turns.

    Args:
        artifacts: by architecture; the first one is what the others are compared with.
        image: letterboxed into its bucket as the server does it.
        rounds: runs of each.
        threads: of ONNX Runtime.

    Returns:
        By architecture `ms`, the median, and `ratio`, the median over rounds of its time by the
        first one's in the same round.
    """
    pixels = decode(image.read_bytes(), max_pixels=MAX_PIXELS)
    runs = []
    for arch, artifact in artifacts.items():
        session = Session.open(artifact, device="cpu", threads=threads)
        canvas = prepare_image(pixels, artifact.metadata).canvas[None]
        for _ in range(WARM_UP_RUNS):
            session.run(canvas)
        runs.append((arch, session, canvas))
    times: dict[str, list[float]] = {arch: [] for arch in artifacts}
    for _ in range(rounds):
        for arch, session, canvas in runs:
            started = time.perf_counter()
            session.run(canvas)
            times[arch].append(1e3 * (time.perf_counter() - started))
    first = times[next(iter(artifacts))]
    return {
        arch: {
            "ms": statistics.median(own),
            "ratio": statistics.median(a / b for a, b in zip(own, first, strict=True)),
        }
        for arch, own in times.items()
    }


def measure(
    finished: Mapping[tuple[str, int], Path],
    data: Path,
    imgsz: int,
    rounds: int,
    threads: int,
) -> dict[str, Any]:
    """Measures all runs that are there.

    Args:
        finished: the run's folder by (architecture, seed); at least one.
        data: the data set's YAML; its split `val` is measured on.
        imgsz: the size of training, which is the artifact's too.
        rounds: of the latency.
        threads: of ONNX Runtime, for the latency.

    Returns:
        `runs`: one each, `arch`, `seed`, `map50_95`, `map50` and its `curve`; `images`: how many
        there are in `train` and `val`; and `architectures`: by name `parameters`, `gflops`, `ms`,
        `ratio` (to the first).
    """
    names, images = read_dataset(data, "val")
    runs: list[dict[str, Any]] = []
    artifacts: dict[str, Artifact] = {}
    with tempfile.TemporaryDirectory() as folder:
        for (arch, seed), run in finished.items():
            output = Path(folder) / f"{run.name}.onnx"
            artifact = export_run(run / "best.pt", output, imgsz, data)
            artifacts.setdefault(arch, artifact)  # weights don't change the time: one seed will do
            accuracy = accuracy_of(artifact)
            runs.append({"arch": arch, "seed": seed, **accuracy, "curve": curve_of(run)})
            print(f"{run.name}: mAP50-95 {accuracy['map50_95']:.4f}", flush=True)
        times = latencies(artifacts, images[0].path, rounds, threads)
    sizes = {arch: size_of(arch, len(names), imgsz) for arch in artifacts}
    return {
        "images": {"train": len(read_dataset(data, "train")[1]), "val": len(images)},
        "runs": runs,
        "architectures": {arch: sizes[arch] | times[arch] for arch in artifacts},
    }
