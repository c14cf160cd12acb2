"""The weights that the project ships, through the whole server, against the checkpoint itself."""

import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from ultralytics import YOLO

from benchmarks.micro.startup import measure
from export.__main__ import main as export
from export.verification.coco_figures import coco_accuracy, match
from export.verification.yolo_dataset import Boxes, read_dataset
from model.registration import register
from samples.render import render_smear
from server.host import integer_instructions
from server.inference.artifact import Artifact, load_artifact
from server.inference.repository import load_model, select_variant
from tests.support.serving import Served, served

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

BOX_LIMIT_PX, SCORE_LIMIT = 0.5, 1e-3
# Of average precision, through HTTP and in this machine's arithmetic.
ACCURACY_LIMIT = 0.005
SIDES = ("x1", "y1", "x2", "y2")


PRECISIONS = ("fp32", "fp16", "int8")


@pytest.fixture(scope="module")
def artifacts(repo_dir: Path) -> dict[str, Artifact]:
    """The files of the model, by precision."""
    return {each.metadata.precision: each for each in load_model(repo_dir / "weights")}


@pytest.fixture(scope="module")
def artifact(repo_dir: Path) -> Artifact:
    """The one in float32, whose detections are the checkpoint's."""
    return load_artifact(repo_dir / "weights" / "yolov8n-fla-bccd.onnx")


@pytest.fixture(scope="module")
def checkpoint(repo_dir: Path) -> Path:
    return repo_dir / "weights" / "yolov8n-fla-bccd.pt"


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Any:
    register()
    return YOLO(str(checkpoint))


@pytest.fixture
async def running(artifact: Artifact) -> AsyncIterator[Served]:
    async with served(artifact.path) as running:
        yield running


def test_the_artifact_was_made_from_the_checkpoint_beside_it(
    artifact: Artifact, checkpoint: Path
) -> None:
    assert artifact.metadata.source_sha256 == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert artifact.metadata.certificate.verdict == "equal"
    assert artifact.metadata.certificate.buckets == artifact.metadata.buckets


def test_the_folder_holds_one_model_in_three_precisions_that_kept_its_accuracy(
    artifacts: dict[str, Artifact], artifact: Artifact
) -> None:
    assert set(artifacts) == set(PRECISIONS)
    for precision, each in artifacts.items():
        metadata, certificate = each.metadata, each.metadata.certificate
        assert metadata.name == "yolov8n-fla-bccd"
        assert metadata.buckets == certificate.buckets == artifact.metadata.buckets
        assert certificate.verdict == ("equal" if precision == "fp32" else "within_gate")
        assert certificate.accuracy is not None
        assert certificate.accuracy.images == 87


def test_the_best_file_for_each_device_is_chosen(artifacts: dict[str, Artifact]) -> None:
    chosen = {
        device: select_variant(list(artifacts.values()), device).artifact.metadata.precision
        for device in ("cpu", "cuda:0", "tensorrt")
    }
    here = "int8" if integer_instructions() else "fp32"
    assert chosen == {"cpu": here, "cuda:0": "fp16", "tensorrt": "fp16"}


async def detect(
    running: Served, pictures: Sequence[tuple[str, bytes]], conf: float = 0.25
) -> list[Any]:
    """The results of requests of eight pictures each, in the order of the pictures."""
    results: list[Any] = []
    for start in range(0, len(pictures), 8):
        files = [("images", picture) for picture in pictures[start : start + 8]]
        response = await running.client.post("/detect", files=files, params={"conf": conf})
        assert response.status_code == 200
        results += response.json()["results"]
    return results


def rows(result: Any) -> NDArray[np.float64]:
    """(N, 6) xyxy in original pixels, score, class id."""
    return np.array(
        [
            [*(found["box"][side] for side in SIDES), found["score"], found["class_id"]]
            for found in result["detections"]
        ]
    ).reshape(-1, 6)


def predicted(reference: Any, path: Path, imgsz: int) -> NDArray[np.float64]:
    """The same of ultralytics' own `predict`."""
    (result,) = reference.predict(
        str(path), imgsz=imgsz, conf=0.25, iou=0.7, max_det=300, device="cpu", verbose=False
    )
    return np.asarray(result.boxes.data.numpy(), np.float64)


async def compare(running: Served, reference: Any, paths: Sequence[Path], imgsz: int) -> int:
    """Holds the server's answers against `predict`; returns how many detections it compared."""
    results = await detect(running, [(path.name, path.read_bytes()) for path in paths])
    compared = 0
    for path, result in zip(paths, results, strict=True):
        ours, theirs = rows(result), predicted(reference, path, imgsz)
        assert result["filename"] == path.name
        assert len(ours) == len(theirs), path.name
        np.testing.assert_array_equal(ours[:, 5], theirs[:, 5], err_msg=path.name)
        np.testing.assert_allclose(ours[:, :4], theirs[:, :4], atol=BOX_LIMIT_PX, rtol=0)
        np.testing.assert_allclose(ours[:, 4], theirs[:, 4], atol=SCORE_LIMIT, rtol=0)
        compared += len(ours)
    return compared


async def test_the_samples_come_back_as_predict_says(
    running: Served, reference: Any, artifact: Artifact, repo_dir: Path
) -> None:
    paths = sorted((repo_dir / "samples").glob("*.jpg"))
    assert await compare(running, reference, paths, max(artifact.metadata.input_hw)) >= 20


async def test_all_validation_pictures_come_back_as_predict_says(
    running: Served, reference: Any, artifact: Artifact, shared_dir: Path
) -> None:
    paths = sorted((shared_dir / "datasets" / "bccd" / "images" / "val").glob("*.jpg"))
    assert len(paths) == 87
    assert await compare(running, reference, paths, max(artifact.metadata.input_hw)) > 800


@pytest.mark.parametrize("precision", PRECISIONS)
async def test_the_accuracy_that_is_claimed_is_reached(
    artifacts: dict[str, Artifact], shared_dir: Path, precision: str
) -> None:
    names, images = read_dataset(shared_dir / "datasets" / "bccd" / "data.yaml", "val")
    pictures = [(image.path.name, image.path.read_bytes()) for image in images]
    async with served(artifacts[precision].path) as running:
        results = await detect(running, pictures, conf=0.001)
    detections = []
    for result in results:
        found = rows(result)
        detections.append(Boxes(found[:, :4], found[:, 5].astype(np.int64), found[:, 4]))
    accuracy = coco_accuracy(images, detections, names)
    claimed = artifacts[precision].metadata.certificate.accuracy
    assert claimed is not None
    assert accuracy.map50 == pytest.approx(claimed.artifact_map50, abs=ACCURACY_LIMIT)
    assert accuracy.map50_95 == pytest.approx(claimed.artifact_map50_95, abs=ACCURACY_LIMIT)
    assert accuracy.map50 >= 0.88
    assert accuracy.map50_95 >= 0.58


def test_the_server_at_rest_stays_below_300_mb(repo_dir: Path) -> None:
    picture = (repo_dir / "samples" / "smear_1.jpg").read_bytes()
    measured = measure(["--device", "cpu"], picture, requests=20)
    assert measured["memory_ready_mb"] < 300
    assert measured["memory_after_requests_mb"] < 300


def share_found(truths: Sequence[Boxes], results: Sequence[Any]) -> float:
    """The share of cells that a detection of their class overlaps with IoU >= 0.5."""
    hits = []
    for truth, result in zip(truths, results, strict=True):
        found = rows(result)
        detected = Boxes(found[:, :4], found[:, 5].astype(np.int64), found[:, 4])
        hits += match(truth, detected, 0.25).tolist()
    return float(np.mean(hits))


def boxes_of(cells: Sequence[tuple[int, Sequence[float]]]) -> Boxes:
    class_ids = np.array([class_id for class_id, _ in cells], np.int64)
    xyxy = np.array([box for _, box in cells], np.float64).reshape(-1, 4)
    return Boxes(xyxy, class_ids, np.ones(len(cells)))


async def test_nearly_all_cells_of_newly_rendered_smears_are_found(running: Served) -> None:
    truths, pictures = [], []
    for seed in range(20_000, 20_050):  # the training set has 1000 to 1239
        picture, cells = render_smear(seed)
        truths.append(boxes_of(cells))
        jpeg = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 84])[1]
        pictures.append((f"{seed}.jpg", jpeg.tobytes()))
    assert share_found(truths, await detect(running, pictures)) >= 0.95


@pytest.mark.parametrize("precision", PRECISIONS)
async def test_the_cells_of_the_samples_are_found_in_every_precision(
    artifacts: dict[str, Artifact], repo_dir: Path, precision: str
) -> None:
    drawn = json.loads((repo_dir / "samples" / "smears.json").read_text())
    names = sorted(path.name for path in (repo_dir / "samples").glob("*.jpg"))
    truths = [
        boxes_of([(cell["class_id"], cell["box"]) for cell in drawn[name]["cells"]])
        for name in names
    ]
    pictures = [(name, (repo_dir / "samples" / name).read_bytes()) for name in names]
    async with served(artifacts[precision].path) as running:
        assert share_found(truths, await detect(running, pictures)) >= 0.95


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_reduced_precision_keeps_the_accuracy(
    checkpoint: Path, shared_dir: Path, tmp_path: Path, precision: str
) -> None:
    data = shared_dir / "datasets" / "bccd" / "data.yaml"
    command = [str(checkpoint), "-o", str(tmp_path / "reduced.onnx"), "--imgsz", "480", "--static"]
    assert export([*command, "--precision", precision, "--data", str(data)]) == 0
    metadata = load_artifact(tmp_path / "reduced.onnx").metadata
    certificate = metadata.certificate
    assert (metadata.precision, certificate.verdict) == (precision, "within_gate")
    calibrated = {"fp16": None, "int8": "64 images of bccd/data.yaml, train"}
    assert certificate.calibration == calibrated[precision]
    assert certificate.accuracy is not None
    assert certificate.accuracy.images == 87
    assert certificate.accuracy.source_map50_95 > 0.58
    assert certificate.accuracy.loss <= {"fp16": 0.001, "int8": 0.005}[precision]
    assert certificate.detections_agreement > {"fp16": 0.99, "int8": 0.9}[precision]
    whole = (checkpoint.with_suffix(".onnx")).stat().st_size
    assert certificate.file_bytes < {"fp16": 0.6, "int8": 0.4}[precision] * whole
