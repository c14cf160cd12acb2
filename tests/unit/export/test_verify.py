"""Verification must fail when it should: each test damages one thing and looks at the message."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from export.buckets import buckets
from export.errors import VerificationFailed
from export.sources.checkpoint import Checkpoint, load_checkpoint
from export.stamp import stamp
from export.verification.compare import DIFFERENT, candidate_difference
from export.verification.images import MIN_SIDE, Image, comparison_images, cropped_to
from export.verification.outputs import run_batch, threshold
from export.verification.reference import Case, make_cases
from export.verification.verify import (
    RELATIVE_SCORE_LIMIT,
    TENSOR_BOX_LIMIT_PX,
    TENSOR_SCORE_LIMIT,
    compare_detections,
    compare_tensors,
    verify,
    within_rounding,
)
from model.registration import register
from server.inference.artifact import Artifact, graph_sha256, load_artifact
from server.inference.detector import Detector
from server.inference.session import Session
from server.vision.letterbox import choose_bucket
from server.vision.nms import DetectParameters


@pytest.fixture(scope="module")
def artifact(repo_dir: Path) -> Artifact:
    return load_artifact(repo_dir / "weights" / "yolov8n-fla-bccd.onnx")


@pytest.fixture(scope="module")
def checkpoint(repo_dir: Path) -> Checkpoint:
    register()
    return load_checkpoint(repo_dir / "weights" / "yolov8n-fla-bccd.pt")


@pytest.fixture(scope="module")
def images(repo_dir: Path) -> list[Image]:
    return comparison_images(repo_dir / "samples")[0]


@pytest.fixture(scope="module")
def case(artifact: Artifact, checkpoint: Checkpoint, images: list[Image]) -> Case:
    smallest = min(artifact.metadata.buckets, key=lambda hw: hw[0] * hw[1])
    return make_cases(checkpoint, artifact.metadata, images, smallest)[0]


@pytest.fixture(scope="module")
def detector(artifact: Artifact) -> Iterator[Detector]:
    session = Session.open(artifact, device="cpu")
    yield Detector(artifact, session)
    session.close()


def test_an_artifact_with_a_changed_weight_fails(
    artifact: Artifact, checkpoint: Checkpoint, images: list[Image], tmp_path: Path
) -> None:
    graph = onnx.load(artifact.path)
    largest = max(graph.graph.initializer, key=lambda tensor: int(np.prod(tensor.dims)))
    values = numpy_helper.to_array(largest).copy()
    values *= np.float32(1.01)
    largest.CopyFrom(numpy_helper.from_array(values, largest.name))
    del graph.metadata_props[:]
    digest = graph_sha256(graph.SerializeToString(deterministic=True))
    metadata = artifact.metadata.model_copy(update={"graph_sha256": digest})
    stamp(graph, metadata, tmp_path / "changed.onnx", force=False)
    with pytest.raises(
        VerificationFailed, match=r"batch 1 at \d+x\d+: .*candidate .* the limit is"
    ):
        verify(load_artifact(tmp_path / "changed.onnx"), checkpoint, images, "samples")


def rows_of(case: Case) -> NDArray[np.float32]:
    """The K best candidates, made from the reference itself."""
    x, y, width, height = case.predictions[:4]
    best = case.predictions[4:].max(0)
    class_ids = case.predictions[4:].argmax(0).astype(np.float32)
    corners = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    rows: NDArray[np.float32] = np.stack([*corners, best, class_ids], axis=1)
    return rows[np.argsort(-best, kind="stable")[:1000]]


def test_the_reference_agrees_with_itself_in_any_order_of_equal_scores(case: Case) -> None:
    rows = rows_of(case)
    difference = candidate_difference(rows, case.predictions)
    assert difference.boxes_px < 1e-3
    assert difference.scores < 1e-6


def test_scores_that_are_as_good_as_nothing_need_not_agree_in_proportion(case: Case) -> None:
    predictions = case.predictions.copy()
    predictions[4:, ::2] = 1e-7
    faint = replace(case, predictions=predictions)
    rows = rows_of(faint)
    rows[rows[:, 4] < 1e-6, 4] = 0
    assert candidate_difference(rows, predictions).relative_scores < RELATIVE_SCORE_LIMIT


def test_a_checkpoint_that_gives_no_numbers_is_found(case: Case) -> None:
    predictions = case.predictions.copy()
    predictions[-1, -1] = np.nan
    assert candidate_difference(rows_of(case), predictions) == DIFFERENT


@pytest.mark.parametrize("damage", ["box", "score", "class", "left out", "repeated", "nan"])
def test_damaged_candidates_are_found(case: Case, damage: str) -> None:
    rows = rows_of(case)
    if damage == "box":
        rows[3, 2] += 0.2
    elif damage == "score":
        rows[3, 4] += 2e-3
    elif damage == "class":
        rows[0, 5] = (rows[0, 5] + 1) % 3
    elif damage == "left out":
        rows[2:-1] = rows[3:]
    elif damage == "repeated":
        rows[len(rows) // 2 :] = rows[len(rows) // 2]
    else:
        rows[5, 1] = np.nan
    difference = candidate_difference(rows, case.predictions)
    assert (
        difference.boxes_px > TENSOR_BOX_LIMIT_PX
        or difference.scores > TENSOR_SCORE_LIMIT
        or difference.relative_scores > RELATIVE_SCORE_LIMIT
    )


def test_a_missing_or_moved_detection_is_found(case: Case, detector: Detector) -> None:
    parameters = DetectParameters(conf=threshold([case]))
    (ours,) = detector.detect([case.image], parameters)
    compare_detections(case, ours, parameters)

    found = ours.detections
    fewer = replace(
        found, boxes=found.boxes[1:], scores=found.scores[1:], class_ids=found.class_ids[1:]
    )
    with pytest.raises(VerificationFailed, match="detections where the checkpoint has"):
        compare_detections(case, replace(ours, detections=fewer), parameters)
    backwards = replace(
        found,
        boxes=found.boxes[::-1],
        scores=found.scores[::-1],
        class_ids=found.class_ids[::-1],
    )
    with pytest.raises(VerificationFailed, match="inf px"):
        compare_detections(case, replace(ours, detections=backwards), parameters)
    moved = replace(found, boxes=found.boxes + np.float32(0.7))
    with pytest.raises(VerificationFailed, match=r"limit 0\.5"):
        compare_detections(case, replace(ours, detections=moved), parameters)


def test_a_little_off_everywhere_is_found_though_no_candidate_is_far_off(
    artifact: Artifact, case: Case
) -> None:
    session = Session.open(artifact, device="cpu")
    batch = run_batch(artifact, session, [case])
    session.close()
    off = case.predictions.copy()
    off[0] += 0.02
    with pytest.raises(VerificationFailed, match="most candidate boxes"):
        compare_tensors(batch, [replace(case, predictions=off)])
    off = case.predictions.copy()
    off[4:] += 1e-4
    with pytest.raises(VerificationFailed, match="most candidate scores"):
        compare_tensors(batch, [replace(case, predictions=off)])


def test_too_few_candidates_are_found(artifact: Artifact, case: Case) -> None:
    expecting_more = artifact.metadata.model_copy(update={"max_candidates": 2000})
    session = Session.open(artifact, device="cpu")
    compare_tensors(run_batch(artifact, session, [case]), [case])
    with pytest.raises(VerificationFailed, match=r"\(1, 1000, 6\), with 2000 rows expected"):
        run_batch(replace(artifact, metadata=expecting_more), session, [case])
    session.close()


@pytest.mark.parametrize("conf", [1e-6, 0.25])
def test_thresholds_moved_by_rounding_are_still_thresholds(conf: float) -> None:
    nearby = list(within_rounding(DetectParameters(conf=conf)))
    assert nearby[0] == DetectParameters(conf=conf)
    assert len(set(nearby)) == 9


@pytest.mark.parametrize("imgsz", [96, 480, 640, 928, 1280])
def test_crops_of_any_image_go_to_the_bucket_that_they_are_made_for(
    artifact: Artifact, imgsz: int
) -> None:
    shapes = buckets(imgsz, 32)
    metadata = artifact.metadata.model_copy(update={"input_hw": (imgsz, imgsz), "buckets": shapes})
    rng = np.random.default_rng(0)
    for height, width in rng.integers(MIN_SIDE, 1500, (60, 2)):
        image = np.zeros((height, width, 3), np.uint8)
        for shape in shapes:
            assert choose_bucket(cropped_to(image, shape).shape[:2], metadata.buckets) == shape


def test_cropping_takes_the_largest_centred_part() -> None:
    image = np.arange(4 * 8 * 3, dtype=np.uint8).reshape(4, 8, 3)
    np.testing.assert_array_equal(cropped_to(image, (100, 100)), image[:, 2:6])
    np.testing.assert_array_equal(cropped_to(image, (4, 8)), image)
