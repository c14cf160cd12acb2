"""Proves that an artifact answers as its checkpoint does, through the code that will serve it.

The reference side is the checkpoint as it was trained, run by torch, with ultralytics' own NMS
and its own way back to original pixels.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np
import torch
from numpy.typing import NDArray
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.nms import non_max_suppression
from ultralytics.utils.ops import scale_boxes, xywh2xyxy

from export.errors import VerificationFailed
from export.pictures import Image, cropped_to
from server.artifact import Artifact, Certificate
from server.detector import Detector, ImageDetections, Prepared, prepare_image
from server.postprocess import DetectParameters
from server.session import Session

BATCH_SIZES = (1, 2, 3, 8)
TENSOR_BOX_LIMIT_PX, TENSOR_SCORE_LIMIT = 1e-2, 5e-5
BOX_LIMIT_PX, SCORE_LIMIT = 0.5, 1e-3
FEW = 20  # candidates above the default threshold, below which it is lowered to see more
ROUNDING = 1e-4  # of an overlap or a score: within it a threshold decides by rounding

UNVERIFIED = Certificate(
    created="",
    tensor_max_abs_diff_boxes_px=-1,
    tensor_max_abs_diff_scores=-1,
    detections_compared=0,
    detections_equal=False,
    detections_max_box_diff_px=-1,
    detections_max_score_diff=-1,
    batch_sizes=(),
    buckets=(),
    images="",
)


@dataclass(frozen=True, slots=True)
class Difference:
    """The largest differences, boxes in pixels."""

    boxes_px: float
    scores: float

    def __or__(self, other: "Difference") -> "Difference":
        return Difference(max(self.boxes_px, other.boxes_px), max(self.scores, other.scores))


@dataclass(frozen=True, slots=True)
class Case:
    """One picture of a bucket, and what the checkpoint makes of it."""

    picture: Image
    prepared: Prepared
    predictions: NDArray[np.float32]  # (4 + classes, A), boxes xywh in input pixels


def verify(
    artifact: Artifact,
    model: DetectionModel,
    images: Sequence[Image],
    description: str,
    report: Callable[[str], None] = lambda _: None,
) -> Certificate:
    """Compares tensors and detections at every bucket and batch size.

    Args:
        artifact: a stamped file; its certificate is not looked at.
        model: the checkpoint's, float32, not rewritten.
        images: at least one, RGB; each is cropped to each bucket's aspect ratio.
        description: of the images, for the certificate.
        report: is told of each bucket that was compared.

    Raises:
        VerificationFailed: the message says what differs, where, by how much, and the limit.
    """
    session = Session.open(artifact, device="cpu")
    detector = Detector(artifact, session, max_batch_size=max(BATCH_SIZES))
    tensors = detections = Difference(0, 0)
    compared = 0
    for bucket_hw in artifact.metadata.buckets:
        cases = make_cases(artifact, model, images, bucket_hw)
        for size in BATCH_SIZES:
            tensors |= compare_tensors(session, cases[:size])
        parameters = DetectParameters(conf=threshold(cases))
        found = detector.detect([case.picture for case in cases], parameters)
        for case, ours in zip(cases, found, strict=True):
            detections |= compare_detections(case, ours, parameters)
            compared += len(ours.detections.scores)
        report(f"{bucket_hw[0]}x{bucket_hw[1]}")
    session.close()
    if compared == 0:
        raise VerificationFailed(
            f"nothing was detected in {description}: give pictures of what the model knows (--data)"
        )
    return Certificate(
        created=datetime.now(UTC).date().isoformat(),
        tensor_max_abs_diff_boxes_px=tensors.boxes_px,
        tensor_max_abs_diff_scores=tensors.scores,
        detections_compared=compared,
        detections_equal=True,
        detections_max_box_diff_px=detections.boxes_px,
        detections_max_score_diff=detections.scores,
        batch_sizes=BATCH_SIZES,
        buckets=artifact.metadata.buckets,
        images=description,
    )


def make_cases(
    artifact: Artifact, model: DetectionModel, images: Sequence[Image], bucket_hw: tuple[int, int]
) -> list[Case]:
    """As many cases of one bucket as the largest batch; images repeat, turned, when too few."""
    cases = []
    for i in range(max(BATCH_SIZES)):
        picture = cropped_to(np.rot90(images[i % len(images)], i // len(images)), bucket_hw)
        prepared = prepare_image(picture, artifact.metadata)
        assert prepared.bucket_hw == bucket_hw
        with torch.inference_mode():
            x = torch.from_numpy(prepared.canvas).permute(2, 0, 1)[None].float() / 255
            predictions = model(x)[0][0].numpy()
        cases.append(Case(picture, prepared, predictions))
    return cases


def threshold(cases: Sequence[Case]) -> float:
    """The default confidence threshold, or a lower one where it would leave little to compare.

    The lower one lies in the widest gap between scores, where rounding decides nothing.
    """
    default = DetectParameters().conf
    scores = np.sort(np.concatenate([case.predictions[4:].max(0) for case in cases]))[::-1]
    if (scores > default).sum() >= FEW:
        return default
    below = scores[FEW : 20 * FEW]
    widest = int((below[:-1] - below[1:]).argmax())
    return float(below[widest] + below[widest + 1]) / 2


def compare_tensors(session: Session, cases: Sequence[Case]) -> Difference:
    """Runs the cases as one batch and compares their candidates, each by its anchor point.

    Raises:
        VerificationFailed: beyond `TENSOR_BOX_LIMIT_PX` or `TENSOR_SCORE_LIMIT`.
    """
    batch = session.run(np.stack([case.prepared.canvas for case in cases]))
    height, width = cases[0].prepared.bucket_hw
    where = f"batch {len(cases)} at {height}x{width}"
    worst = Difference(0, 0)
    for candidates, case in zip(batch, cases, strict=True):
        worst |= candidate_difference(candidates, case.predictions)
    if worst.boxes_px > TENSOR_BOX_LIMIT_PX:
        raise VerificationFailed(
            f"{where}: candidate boxes differ by {worst.boxes_px:.3g} px, "
            f"the limit is {TENSOR_BOX_LIMIT_PX}"
        )
    if worst.scores > TENSOR_SCORE_LIMIT:
        raise VerificationFailed(
            f"{where}: candidate scores differ by {worst.scores:.3g}, "
            f"the limit is {TENSOR_SCORE_LIMIT}"
        )
    return worst


def candidate_difference(
    candidates: NDArray[np.float32], predictions: NDArray[np.float32]
) -> Difference:
    """How far the K best candidates are from all predictions' K best.

    Scores are compared by rank, which also finds a candidate that was left out. Ranks of equal
    scores are arbitrary, so boxes are compared with the nearest among all anchor points.

    Args:
        candidates: (K, 6), xyxy, score, class id.
        predictions: (4 + classes, A), xywh, scores.
    """
    if not np.isfinite(candidates).all():
        return Difference(float("inf"), float("inf"))
    boxes = xywh2xyxy(predictions[:4].T)  # (A, 4)
    scores = predictions[4:]  # (classes, A)
    order = np.argsort(-scores.max(0), kind="stable")[: len(candidates)]
    by_rank = np.abs(scores.max(0)[order] - candidates[:, 4]).max()

    same = np.abs(boxes[order] - candidates[:, :4]).max(1)  # (K,) when ranks agree
    nearest = order.copy()
    for row in np.flatnonzero(same > TENSOR_BOX_LIMIT_PX):
        distances = np.abs(boxes - candidates[row, :4]).max(1)
        nearest[row], same[row] = distances.argmin(), distances.min()
    own_class = scores[candidates[:, 5].astype(int), nearest]
    return Difference(
        float(same.max()), float(max(by_rank, np.abs(own_class - candidates[:, 4]).max()))
    )


def compare_detections(
    case: Case, ours: ImageDetections, parameters: DetectParameters
) -> Difference:
    """Compares final detections, in original pixels, with ultralytics' from the checkpoint.

    Where an overlap or a score is so close to its threshold that rounding decides, either
    decision is right: the reference may then be the one for a threshold moved by `ROUNDING`.

    Raises:
        VerificationFailed: another count, other classes, or beyond `BOX_LIMIT_PX`, `SCORE_LIMIT`.
    """
    worst = None
    for nearby in within_rounding(parameters):
        rows = reference_detections(case, nearby)
        difference = detection_difference(ours, rows)
        if difference.boxes_px <= BOX_LIMIT_PX and difference.scores <= SCORE_LIMIT:
            return difference
        worst = worst or (rows, difference)
    assert worst is not None
    rows, difference = worst
    height, width = case.prepared.bucket_hw
    raise VerificationFailed(
        f"{height}x{width}: {len(ours.detections.scores)} detections where the checkpoint has "
        f"{len(rows)}; boxes differ by {difference.boxes_px:.3g} px (limit {BOX_LIMIT_PX}), "
        f"scores by {difference.scores:.3g} (limit {SCORE_LIMIT})"
    )


def within_rounding(parameters: DetectParameters) -> Iterator[DetectParameters]:
    """The parameters, and those that rounding could turn them into."""
    yield parameters
    for step in (-ROUNDING, ROUNDING):
        yield replace(parameters, iou=parameters.iou + step)
        yield replace(parameters, conf=parameters.conf + step)


def reference_detections(case: Case, parameters: DetectParameters) -> NDArray[np.float32]:
    """(N, 6) xyxy in original pixels, score, class id: ultralytics' NMS and its way back."""
    (rows,) = non_max_suppression(
        torch.from_numpy(case.predictions.copy())[None],
        parameters.conf,
        parameters.iou,
        max_det=parameters.max_det,
    )
    scale_boxes(case.prepared.bucket_hw, rows[:, :4], case.picture.shape[:2])
    detections: NDArray[np.float32] = rows.numpy()
    return detections


def detection_difference(ours: ImageDetections, rows: NDArray[np.float32]) -> Difference:
    """Pairs each reference detection with the nearest of its class; infinite when none is left."""
    left = list(range(len(ours.detections.scores)))
    if len(left) != len(rows):
        return Difference(float("inf"), float("inf"))
    worst = Difference(0, 0)
    for row in rows:
        same_class = [i for i in left if ours.detections.class_ids[i] == row[5]]
        if not same_class:
            return Difference(float("inf"), float("inf"))
        distances = np.abs(ours.detections.boxes[same_class] - row[:4]).max(1)
        nearest = same_class[int(distances.argmin())]
        left.remove(nearest)
        score_difference = abs(float(ours.detections.scores[nearest]) - float(row[4]))
        worst |= Difference(float(distances.min()), score_difference)
    return worst
