"""When a certificate is given, and when it is not."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from export.errors import AccuracyLost, DatasetInvalid
from export.table import certificate_rows, table
from export.verification.certify import TOLERANCES, judge
from export.verification.compare import DIFFERENT, matched_difference, nearest_difference
from export.verification.evaluation import read_labelled
from export.verification.images import calibration_canvases, describe_split, listed
from server.inference.artifact import load_artifact
from server.inference.certificate import Accuracy, Precision
from server.inference.detector import ImageDetections
from server.vision.nms import Detections
from tests.support.artifacts import tiny_artifact


def accuracy(loss: float) -> Accuracy:
    return Accuracy(
        data="made up",
        images=10,
        objects=100,
        source_map50_95=0.6,
        source_map50=0.9,
        artifact_map50_95=0.6 - loss,
        artifact_map50=0.9,
    )


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_loss_is_within_the_tolerance_refused_with_its_figures_or_accepted(
    precision: Precision,
) -> None:
    tolerance = TOLERANCES[precision]
    assert judge(precision, accuracy(tolerance * 0.99), accept_loss=False) == "within_gate"
    assert judge(precision, accuracy(-0.02), accept_loss=True) == "within_gate"
    little = {"source_map50_95": 9.9 * tolerance, "artifact_map50_95": 9.9 * tolerance}
    for measured, words in (
        (
            accuracy(tolerance * 1.01),
            rf"{precision} loses 0\.00.* the limit is {tolerance}; --accept-loss",
        ),
        (None, r"--data DATA\.yaml"),
        (
            accuracy(0).model_copy(update=little),
            f"the source itself has a mAP50-95 of {9.9 * tolerance:.4f}",
        ),
    ):
        with pytest.raises(AccuracyLost, match=words):
            judge(precision, measured, accept_loss=False)
        assert judge(precision, measured, accept_loss=True) == "loss_accepted"


def test_ranges_are_not_taken_from_images_that_accuracy_is_measured_on(tmp_path: Path) -> None:
    metadata = load_artifact(tiny_artifact(tmp_path / "tiny.onnx")).metadata
    described = dataset(tmp_path, "[dog]")  # both splits are the same folder
    measured = listed(described, "val")
    assert len(calibration_canvases(described, "train", metadata, 64)) == 1
    with pytest.raises(DatasetInvalid, match=r"accuracy is not measured on.*--calibration"):
        calibration_canvases(described, "train", metadata, 64, without=measured)
    shutil.copy(measured[0], tmp_path / "other.png")
    assert len(calibration_canvases(tmp_path, "train", metadata, 64, without=measured)) == 1


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("data.yaml", b"\xff\xfe\x00", "cannot read .*data.yaml"),
        ("data.yaml", b"names: 3\nval: images", "names no classes"),
        ("data.yaml", b"names: dog\nval: images", "names no classes"),
        ("data.yaml", b"names: [dog]\nval: 7", "no such folder or list"),
        ("data.yaml", b"names: [dog]\nval: data.yaml\n\x85", "cannot read"),
        ("labels/a.txt", b"\xff\xfe", "cannot read .*a.txt"),
        ("labels/a.txt", b"0 nan 0.5 0.5 0.5", "a.txt: a value is no finite number"),
        ("labels/a.txt", b"0 0.5 0.5 inf 0.5", "a.txt: a value is no finite number"),
        ("images/a.png", b"", "not an image"),
    ],
)
def test_what_is_wrong_with_a_data_set_is_said(
    tmp_path: Path, file: str, content: bytes, words: str
) -> None:
    described = dataset(tmp_path, "[dog]")
    (tmp_path / file).write_bytes(content)
    with pytest.raises(DatasetInvalid, match=words):
        read_labelled(described, ("dog",))


def predictions(boxes: NDArray[np.float32], scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """(5, A): one class."""
    centre, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    return np.concatenate([centre.T, size.T, scores[None]]).astype(np.float32)


BOXES = np.array([[0, 0, 10, 10], [20, 20, 40, 40], [50, 50, 60, 70]], np.float32)
SCORES = np.array([0.9, 0.6, 0.3], np.float32)
ROWS = np.concatenate([BOXES, SCORES[:, None], np.zeros((3, 1), np.float32)], axis=1)


def test_candidates_are_held_against_the_nearest_in_any_order() -> None:
    rows = ROWS[::-1].copy()
    rows[0, 0] += 0.25
    rows[1, 4] += 0.03125
    difference = nearest_difference(rows, predictions(BOXES, SCORES))
    assert difference.boxes_px == pytest.approx(0.25)
    assert difference.scores == pytest.approx(0.03125)


def test_a_candidate_is_not_held_against_a_faint_one_that_happens_to_be_nearer() -> None:
    faint = np.array([[0.5, 0, 10, 10, 0.02, 0]], np.float32)
    rows = np.concatenate([ROWS, faint])
    rows[0, 0] += 1
    difference = nearest_difference(rows, predictions(BOXES, SCORES))
    assert difference.boxes_px == pytest.approx(1)
    assert difference.scores == pytest.approx(0, abs=1e-6)
    rows[0, 4] = 0.06  # its score was lost
    assert nearest_difference(rows, predictions(BOXES, SCORES)).scores == pytest.approx(0.84)


def test_a_lost_candidate_shows_from_the_side_that_has_it() -> None:
    assert nearest_difference(ROWS[:2], predictions(BOXES, SCORES)).boxes_px >= 30
    assert nearest_difference(ROWS, predictions(BOXES[:2], SCORES[:2])).boxes_px >= 30
    faint = np.array([0.9, 0.6, 0.01], np.float32)
    assert nearest_difference(ROWS[:2], predictions(BOXES, faint)).boxes_px == 0


def test_candidates_that_are_no_numbers_are_as_different_as_can_be() -> None:
    rows = ROWS.copy()
    rows[2, 3] = np.nan
    assert nearest_difference(rows, predictions(BOXES, SCORES)) == DIFFERENT


def detected(rows: NDArray[np.float32]) -> ImageDetections:
    found = Detections(rows[:, :4], rows[:, 4], rows[:, 5].astype(np.int64))
    return ImageDetections(found, width=100, height=100, truncated=False)


def test_detections_are_paired_by_class_and_overlap() -> None:
    moved = ROWS.copy()
    moved[0, 2] += 1.5
    moved[2, 5] = 1  # another class
    difference, pairs, both = matched_difference(detected(moved), ROWS)
    assert (pairs, both) == (2, 6)
    assert difference.boxes_px == pytest.approx(1.5)
    assert matched_difference(detected(ROWS[:0]), ROWS)[1:] == (0, 3)
    assert matched_difference(detected(ROWS), ROWS[:0])[1:] == (0, 3)


def dataset(folder: Path, names: str, label: str = "0 0.5 0.5 0.5 0.5") -> Path:
    import cv2

    for part in ("images", "labels"):
        (folder / part).mkdir()
    cv2.imwrite(str(folder / "images" / "a.png"), np.zeros((80, 100, 3), np.uint8))
    (folder / "labels" / "a.txt").write_text(label)
    (folder / "data.yaml").write_text(f"train: images\nval: images\nnames: {names}\n")
    return folder / "data.yaml"


def test_labels_are_brought_to_the_ids_of_the_model(tmp_path: Path) -> None:
    labelled = read_labelled(dataset(tmp_path, "[dog, cat]"), ("cat", "cow", "dog"))
    assert labelled.images[0].truth.class_ids.tolist() == [2]
    assert labelled.names == {0: "cat", 1: "cow", 2: "dog"}
    assert labelled.description == f"{tmp_path.name}/data.yaml, val"


@pytest.mark.parametrize(
    ("names", "label", "words"),
    [
        ("[dog, cat]", "0 0.5 0.5 0.5 0.5", "names cat, which the model does not know"),
        ("[dog]", "", "nothing is labelled in the split 'val'"),
        ("[dog]", "0 0.5 0.5", "expected 5 values a line, found 3"),
    ],
)
def test_a_data_set_that_proves_nothing_is_refused(
    tmp_path: Path, names: str, label: str, words: str
) -> None:
    with pytest.raises(DatasetInvalid, match=words):
        read_labelled(dataset(tmp_path, names, label), ("dog",))


def test_images_come_from_a_folder_or_from_a_split(tmp_path: Path) -> None:
    described = dataset(tmp_path, "[dog]")
    assert listed(described, "val") == listed(tmp_path, "val")
    assert describe_split(tmp_path, "val") == tmp_path.name
    with pytest.raises(DatasetInvalid, match="no split 'test'"):
        listed(described, "test")
    with pytest.raises(DatasetInvalid, match="there is no such"):
        listed(tmp_path / "none", "val")


def test_a_certificate_reads_as_what_it_says(tmp_path: Path) -> None:
    artifact = load_artifact(tiny_artifact(tmp_path / "tiny.onnx"))
    certificate = artifact.metadata.certificate.model_copy(
        update={"verdict": "loss_accepted", "accuracy": accuracy(0.02), "accuracy_gate": 0.005}
    )
    text = table(certificate_rows(certificate))
    assert "NOT SHOWN" in text
    assert "mAP50-95 0.5800, source 0.6000" in text
    assert "may lose 0.005" in text
