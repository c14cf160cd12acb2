"""Proves that a float32 artifact answers as its source does, through the code that serves it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
from numpy.typing import NDArray
from ultralytics.utils.ops import xyxy2xywh

from export.errors import VerificationFailed
from export.sources.source import Source
from export.verification.compare import (
    Difference,
    Parity,
    candidate_difference,
    detection_difference,
)
from export.verification.images import Image
from export.verification.outputs import batch_of, down_to, outputs_by_bucket
from export.verification.reference import BATCH_SIZES, Case, reference_detections
from server.inference.artifact import Artifact
from server.inference.detector import ImageDetections
from server.vision.nms import DetectParameters

# Of nine in ten candidates of an image; boxes for an input of up to 320 px, in proportion above.
MOST_BOX_LIMIT_PX, MOST_SCORE_LIMIT = 1e-2, 5e-5
# Of every candidate: where nearly all keys are negative, float32 itself is no better than 2e-4.
# Scores also relative, because the last of a thousand candidates scores next to nothing.
TENSOR_BOX_LIMIT_PX, TENSOR_SCORE_LIMIT, RELATIVE_SCORE_LIMIT = 5e-2, 1e-3, 1e-2
BOX_LIMIT_PX, SCORE_LIMIT = 0.5, 1e-3
ROUNDING = 1e-4  # of an overlap, or of a score relatively: so close, rounding decides


def verify(
    artifact: Artifact,
    source: Source,
    images: Sequence[Image],
    description: str,
    report: Callable[[str], None] = lambda _: None,
) -> Parity:
    """Compares tensors and detections at every bucket and batch size.

    Args:
        artifact: a stamped file in float32; its certificate is not looked at.
        source: what it was made from.
        images: at least one, RGB; each is cropped to each bucket's aspect ratio.
        description: of the images.
        report: is told of each bucket that was compared.

    Raises:
        VerificationFailed: the message says what differs, where, by how much, and the limit.
    """
    tensors = detections = Difference()
    compared, decided_by_rounding, lowest_conf = 0, 0, 1.0
    for outputs in outputs_by_bucket(artifact, source, images):
        cases = outputs.cases
        for batch in outputs.batches:
            tensors |= compare_tensors(batch, cases[: len(batch)])
        parameters, found = outputs.detections()
        lowest_conf = min(lowest_conf, parameters.conf)
        for candidates, case, ours in zip(batch, cases, found, strict=True):
            try:
                detections |= compare_detections(case, ours, parameters)
            except VerificationFailed:
                confirm_by_candidates(candidates, case, ours, parameters)
                decided_by_rounding += 1
            compared += len(ours.detections.scores)
        height, width = cases[0].prepared.bucket_hw
        report(f"{height}x{width}, {compared} detections so far")
    if compared == 0:
        raise VerificationFailed(f"no detection to compare in {description}: give others (--data)")
    description = down_to(lowest_conf, description)
    if decided_by_rounding:
        total = len(artifact.metadata.buckets) * max(BATCH_SIZES)
        description += (
            f"; in {decided_by_rounding} of {total} images scores are so close that rounding "
            "decides which boxes stay"
        )
    return Parity(
        tensors=tensors, detections=detections, compared=compared, agreement=1.0, images=description
    )


def compare_tensors(batch: NDArray[np.float32], cases: Sequence[Case]) -> Difference:
    """Compares the candidates (B, K, 6) of one run of the cases, each by its anchor point.

    Raises:
        VerificationFailed: beyond one of the limits of candidates.
    """
    worst = Difference()
    for candidates, case in zip(batch, cases, strict=True):
        worst |= candidate_difference(candidates, case.predictions)
    larger = max(1, max(cases[0].prepared.bucket_hw) / 320)
    for what, difference, limit in (
        ("most candidate boxes (px)", worst.most_boxes_px, MOST_BOX_LIMIT_PX * larger),
        ("most candidate scores", worst.most_scores, MOST_SCORE_LIMIT),
        ("candidate boxes (px)", worst.boxes_px, TENSOR_BOX_LIMIT_PX * larger),
        ("candidate scores", worst.scores, TENSOR_SCORE_LIMIT),
        ("candidate scores, relatively,", worst.relative_scores, RELATIVE_SCORE_LIMIT),
    ):
        if not difference <= limit:
            raise VerificationFailed(
                f"{batch_of(cases)}: {what} differ by {difference:.3g}, the limit is {limit:.3g}"
            )
    return worst


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


def confirm_by_candidates(
    candidates: NDArray[np.float32],
    case: Case,
    ours: ImageDetections,
    parameters: DetectParameters,
) -> None:
    """Shows that detections differ from the checkpoint's by the rounding of candidates alone.

    A barely trained network gives many overlapping boxes nearly equal scores; which of them NMS
    keeps then hangs on the last digit. The candidates were found equal to within the limits, so
    what is left to show is that ultralytics' NMS makes of them just what the serving code makes.

    Raises:
        VerificationFailed: it does not.
    """
    # ultralytics sorts equal scores in any order; this makes each the next smaller number.
    candidates = candidates[np.argsort(-candidates[:, 4], kind="stable")]
    for i in range(1, len(candidates)):
        below = np.nextafter(candidates[i - 1, 4], np.float32(0))
        candidates[i, 4] = min(candidates[i, 4], below)
    boxes = xyxy2xywh(candidates[:, :4])
    scores = np.zeros((len(candidates), len(case.predictions) - 4), np.float32)
    scores[np.arange(len(candidates)), candidates[:, 5].astype(int)] = candidates[:, 4]
    predictions = np.concatenate([boxes, scores], axis=1).T
    compare_detections(replace(case, predictions=predictions), ours, parameters)


def within_rounding(parameters: DetectParameters) -> Iterator[DetectParameters]:
    """The parameters, and those that rounding could turn them into."""
    steps = (0, -ROUNDING, ROUNDING)
    for iou_step, conf_step in product(steps, steps):
        yield replace(
            parameters,
            iou=parameters.iou + iou_step,
            conf=max(0.0, parameters.conf * (1 + conf_step)),
        )
