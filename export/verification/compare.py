"""How far two sets of candidates, or of detections, are apart."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from ultralytics.utils.ops import xywh2xyxy

from export.verification.coco_figures import MATCH_IOU, iou
from server.inference.detector import ImageDetections

OTHER_ANCHOR_PX = 1e-2  # boxes that are further apart may belong to different anchor points
NOTABLE_SCORE = 0.05  # below, a reduced precision may choose other anchor points
SCORE_PX = 20  # a score that differs by 0.05 is as far away as a box that is by a pixel
SCORE_FLOOR = 1e-6  # ONNX Runtime's sigmoid is 0 where torch's is still 1e-7


@dataclass(frozen=True, slots=True)
class Difference:
    """The largest differences.

    Attributes:
        boxes_px: of a box's side, pixels.
        scores: absolute.
        relative_scores: what a score differs by beyond `SCORE_FLOOR`, relative to the reference.
        most_boxes_px, most_scores: what nine of ten candidates of an image stay within.
    """

    boxes_px: float = 0
    scores: float = 0
    relative_scores: float = 0
    most_boxes_px: float = 0
    most_scores: float = 0

    def __or__(self, other: "Difference") -> "Difference":
        return Difference(
            max(self.boxes_px, other.boxes_px),
            max(self.scores, other.scores),
            max(self.relative_scores, other.relative_scores),
            max(self.most_boxes_px, other.most_boxes_px),
            max(self.most_scores, other.most_scores),
        )


@dataclass(frozen=True, slots=True)
class Parity:
    """What comparing an artifact with its source came to.

    Attributes:
        tensors: of candidates, boxes in input pixels.
        detections: of those after NMS that both have, boxes in original pixels.
        compared: how many detections were.
        agreement: share of them, in 0..1, that both have.
        images: what was compared, in words.
    """

    tensors: Difference
    detections: Difference
    compared: int
    agreement: float
    images: str


DIFFERENT = Difference(*[float("inf")] * 5)


def candidate_difference(
    candidates: NDArray[np.float32], predictions: NDArray[np.float32]
) -> Difference:
    """How far the K best candidates are from all predictions' K best.

    Each candidate is held against the anchor point of its rank. Ranks of nearly equal scores are
    arbitrary: where the boxes are apart, it is held against the nearest anchor point instead.
    No two candidates may share one: then a candidate is repeated, and another left out.

    Args:
        candidates: (K, 6), xyxy, score, class id.
        predictions: (4 + classes, A), xywh, scores.
    """
    if not (np.isfinite(candidates).all() and np.isfinite(predictions).all()):
        return DIFFERENT
    boxes = xywh2xyxy(predictions[:4].T)  # (A, 4)
    scores = predictions[4:]  # (classes, A)
    order = np.argsort(-scores.max(0), kind="stable")[: len(candidates)]
    anchor = order.copy()
    distance = np.abs(boxes[order] - candidates[:, :4]).max(1)  # (K,)
    for row in np.flatnonzero(distance > OTHER_ANCHOR_PX):
        distances = np.abs(boxes - candidates[row, :4]).max(1)
        anchor[row], distance[row] = distances.argmin(), distances.min()
    if len(np.unique(anchor)) < len(anchor):
        return DIFFERENT
    ranked = scores.max(0)[order]
    by_rank = np.abs(ranked - candidates[:, 4])
    by_anchor = np.abs(scores[candidates[:, 5].astype(int), anchor] - candidates[:, 4])
    difference = np.maximum(by_rank, by_anchor)
    relative = np.maximum(difference - SCORE_FLOOR, 0) / np.maximum(ranked, SCORE_FLOOR)
    return Difference(
        boxes_px=float(distance.max()),
        scores=float(difference.max()),
        relative_scores=float(relative.max()),
        most_boxes_px=float(np.quantile(distance, 0.9)),
        most_scores=float(np.quantile(difference, 0.9)),
    )


def detection_difference(ours: ImageDetections, rows: NDArray[np.float32]) -> Difference:
    """Pairs each reference detection with the nearest of its class; infinite when none is left.

    Ours must be in the order of their scores; with scores equal to within the limit, that is the
    reference's order, but for scores that are as good as equal.
    """
    left = list(range(len(ours.detections.scores)))
    if len(left) != len(rows) or (np.diff(ours.detections.scores) > 0).any():
        return DIFFERENT
    worst = Difference()
    for row in rows:
        same_class = [i for i in left if ours.detections.class_ids[i] == row[5]]
        if not same_class:
            return DIFFERENT
        distances = np.abs(ours.detections.boxes[same_class] - row[:4]).max(1)
        nearest = same_class[int(distances.argmin())]
        left.remove(nearest)
        score_difference = abs(float(ours.detections.scores[nearest]) - float(row[4]))
        worst |= Difference(float(distances.min()), score_difference)
    return worst


def nearest_difference(
    candidates: NDArray[np.float32], predictions: NDArray[np.float32]
) -> Difference:
    """How far candidates of a reduced precision are from the source's, without a rank to go by.

    Of both sides those that score at least `NOTABLE_SCORE` are looked at. Each is held against
    the one of the other side that is nearest by box and score together, because boxes of several
    anchor points lie on one object: where one was lost, the next is far in one of the two.

    Args:
        candidates: (K, 6), xyxy, score, class id.
        predictions: (4 + classes, A), xywh, scores.
    """
    if not np.isfinite(candidates).all():
        return DIFFERENT
    ours, our_scores = candidates[:, :4], candidates[:, 4]
    theirs, their_scores = xywh2xyxy(predictions[:4].T), predictions[4:].max(0)
    boxes, scores = [np.zeros(1)], [np.zeros(1)]
    for here, score, there, their_score in (
        (ours, our_scores, theirs, their_scores),
        (theirs, their_scores, ours, our_scores),
    ):
        for row in np.flatnonzero(score >= NOTABLE_SCORE):
            distances = np.abs(there - here[row]).max(1)
            apart = np.abs(their_score - score[row])
            nearest = (distances + SCORE_PX * apart).argmin()
            boxes.append(distances[[nearest]])
            scores.append(apart[[nearest]])
    distance, difference = np.concatenate(boxes), np.concatenate(scores)
    return Difference(
        boxes_px=float(distance.max()),
        scores=float(difference.max()),
        most_boxes_px=float(np.quantile(distance, 0.9)),
        most_scores=float(np.quantile(difference, 0.9)),
    )


def matched_difference(
    ours: ImageDetections, rows: NDArray[np.float32]
) -> tuple[Difference, int, int]:
    """Pairs detections of one class that overlap by at least half, the best score choosing first.

    Args:
        ours: the artifact's.
        rows: (N, 6) the source's, xyxy in original pixels, score, class id.

    Returns:
        The largest differences of the pairs, how many pairs there are, and how many detections
        artifact and source have together.
    """
    found = ours.detections
    overlap = iou(found.boxes.astype(np.float64), rows[:, :4].astype(np.float64))
    overlap[found.class_ids[:, None] != rows[None, :, 5]] = 0
    worst, pairs = Difference(), 0
    for i in np.argsort(-found.scores, kind="stable"):
        if not len(rows) or overlap[i].max() < MATCH_IOU:
            continue
        j = int(overlap[i].argmax())
        overlap[:, j] = 0
        pairs += 1
        worst |= Difference(
            float(np.abs(found.boxes[i] - rows[j, :4]).max()),
            abs(float(found.scores[i]) - float(rows[j, 4])),
        )
    return worst, pairs, len(found.scores) + len(rows)
