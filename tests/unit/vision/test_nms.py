import math
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from server.vision.nms import Detections, DetectParameters, nms

MANY = 1_000_000  # anchor points: more than any number of candidates here


def rows(*values: tuple[float, float, float, float, float, float]) -> NDArray[np.float32]:
    return np.array(values, np.float32).reshape(-1, 6)


def random_candidates(
    count: int, classes: int, *, seed: int = 0, size: float = 640.0, levels: int = 0
) -> NDArray[np.float32]:
    """Clusters of boxes that really overlap; `levels` > 0 makes many scores equal."""
    random = np.random.default_rng(seed)
    centres = random.uniform(0, size, (max(1, count // 8), 2))
    centre = centres[random.integers(0, len(centres), count)] + random.normal(0, 6, (count, 2))
    extent = random.uniform(4, 120, (count, 2)) / 2
    score = random.uniform(0, 1, count)
    if levels:
        score = np.ceil(score * levels) / levels
    table = np.column_stack(
        [centre - extent, centre + extent, score, random.integers(0, classes, count)]
    ).astype(np.float32)
    return table[np.argsort(-table[:, 4], kind="stable")]


def as_rows(found: Detections) -> NDArray[np.float32]:
    return np.column_stack([found.boxes, found.scores, found.class_ids]).astype(np.float32)


def test_of_overlapping_boxes_of_a_class_the_best_stays() -> None:
    candidates = rows(
        (0, 0, 10, 10, 0.9, 0),
        (1, 0, 11, 10, 0.8, 0),
        (0, 0, 10, 10, 0.7, 1),
        (50, 0, 60, 9, 0.6, 0),
    )
    found, truncated = nms(candidates, DetectParameters(), anchors=4)
    np.testing.assert_array_equal(as_rows(found), candidates[[0, 2, 3]])
    assert not truncated
    assert found.boxes.dtype == np.float32
    assert found.scores.dtype == np.float32
    assert found.class_ids.dtype == np.int64


def test_agnostic_nms_lets_classes_suppress_each_other() -> None:
    candidates = rows((0, 0, 10, 10, 0.9, 0), (0, 0, 10, 10, 0.7, 1))
    found, _ = nms(candidates, DetectParameters(agnostic_nms=True), anchors=2)
    np.testing.assert_array_equal(as_rows(found), candidates[:1])


def test_a_suppressed_box_suppresses_no_other() -> None:
    # Each overlaps the next by 7/13, the first and the third only by 4/16.
    candidates = rows((0, 0, 10, 1, 0.9, 0), (3, 0, 13, 1, 0.8, 0), (6, 0, 16, 1, 0.7, 0))
    found, _ = nms(candidates, DetectParameters(iou=0.5), anchors=3)
    np.testing.assert_array_equal(as_rows(found), candidates[[0, 2]])


def test_an_overlap_or_score_equal_to_the_threshold() -> None:
    # IoU exactly 1/2: only a larger one suppresses. Score exactly 1/4: only a larger one counts.
    candidates = rows((0, 0, 2, 1, 0.9, 0), (0, 0, 1, 1, 0.8, 0), (9, 9, 10, 10, 0.25, 0))
    found, _ = nms(candidates, DetectParameters(iou=0.5, conf=0.25), anchors=3)
    np.testing.assert_array_equal(as_rows(found), candidates[:2])


def test_of_equal_scores_the_earlier_candidate_wins() -> None:
    candidates = rows((1, 0, 11, 10, 0.5, 0), (0, 0, 10, 10, 0.5, 0))
    found, _ = nms(candidates, DetectParameters(), anchors=2)
    np.testing.assert_array_equal(as_rows(found), candidates[:1])


@pytest.mark.parametrize("count", [0, 1])
def test_few_candidates(count: int) -> None:
    candidates = rows((0, 0, 1, 1, 0.9, 0))[:count]
    found, truncated = nms(candidates, DetectParameters(), anchors=1)
    assert found.boxes.shape == (count, 4)
    assert not truncated


def test_candidates_that_are_not_numbers_are_no_detections() -> None:
    candidates = rows((0, 0, 1, 1, math.nan, 0), (0, 0, 1, 1, 0.5, 0))
    found, _ = nms(candidates, DetectParameters(), anchors=2)
    np.testing.assert_array_equal(as_rows(found), candidates[1:])


def test_empty_boxes_in_one_place_do_not_suppress_each_other() -> None:
    candidates = rows((5, 5, 5, 5, 0.9, 0), (5, 5, 5, 5, 0.8, 0))
    found, _ = nms(candidates, DetectParameters(), anchors=2)
    assert len(found.scores) == 2


@pytest.mark.parametrize(
    ("last_score", "anchors", "truncated"),
    [(0.3, 3, True), (0.3, 2, False), (0.25, 3, False), (0.1, 3, False)],
    ids=["more pass", "all are here", "at the threshold", "below it"],
)
def test_truncated_says_that_more_candidates_may_pass(
    last_score: float, anchors: int, truncated: bool
) -> None:
    candidates = rows((0, 0, 1, 1, 0.9, 0), (4, 4, 5, 5, last_score, 0))
    assert nms(candidates, DetectParameters(conf=0.25), anchors=anchors)[1] is truncated


@pytest.mark.parametrize("backend", ["torch", "torchvision"])
@pytest.mark.parametrize("classes", [1, 3, 80, 600])
@pytest.mark.parametrize("agnostic", [False, True], ids=["per class", "agnostic"])
@pytest.mark.parametrize("iou", [0.0, 0.3, 0.45, 0.7, 1.0])
def test_equal_to_ultralytics(
    classes: int, agnostic: bool, iou: float, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ultralytics takes torchvision's NMS where that was imported before, else its own."""
    theirs = pytest.importorskip("ultralytics.utils.nms", reason="ultralytics not installed")
    torch = pytest.importorskip("torch", reason="torch not installed")

    if backend == "torchvision":
        pytest.importorskip("torchvision", reason="torchvision not installed")
    else:
        monkeypatch.delitem(sys.modules, "torchvision", raising=False)

    def prediction(candidates: NDArray[np.float32]) -> Any:
        """The raw head output that the candidates would have come from: (1, 4 + classes, K)."""
        table = torch.from_numpy(candidates)
        raw = torch.zeros(4 + max(2, classes + 1), len(candidates))
        raw[0:2] = (table[:, 0:2] + table[:, 2:4]).T / 2
        raw[2:4] = (table[:, 2:4] - table[:, 0:2]).T
        raw[4 + table[:, 5].long(), torch.arange(len(candidates))] = table[:, 4]
        return raw[None]

    for seed, (conf, max_det) in enumerate(((0.001, 300), (0.25, 70), (0.5, 5), (0.3, 300))):
        # Which of two equal scores comes first is defined in torchvision's sort, not in torch's.
        levels = 40 if seed % 2 and backend == "torchvision" else 0
        candidates = random_candidates(600, classes, seed=seed, levels=levels)
        raw = prediction(candidates)
        # ultralytics turns centre and size to corners itself: give both the same corners.
        candidates[:, :4] = theirs.xywh2xyxy(raw[0, :4].T).numpy()
        wanted = None if seed < 3 else (0, classes // 2)
        found, _ = nms(
            candidates,
            DetectParameters(conf, iou, max_det, wanted, agnostic),
            anchors=MANY,
        )
        (expected,) = theirs.non_max_suppression(
            raw, conf, iou, classes=wanted and list(wanted), agnostic=agnostic, max_det=max_det
        )
        np.testing.assert_array_equal(as_rows(found), expected.numpy())
