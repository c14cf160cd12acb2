"""Measures how far an artifact of reduced precision is from its source.

Nothing here is a limit: whether the precision is good enough is decided on labelled images, by
average precision. That nothing but the precision differs was shown before, in float32.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from export.errors import VerificationFailed
from export.sources.source import Source
from export.verification.compare import (
    DIFFERENT,
    Difference,
    Parity,
    matched_difference,
    nearest_difference,
)
from export.verification.images import Image
from export.verification.outputs import batch_of, down_to, outputs_by_bucket
from export.verification.reference import Case, reference_detections
from server.inference.artifact import Artifact


def measure_agreement(
    artifact: Artifact,
    source: Source,
    images: Sequence[Image],
    description: str,
    report: Callable[[str], None] = lambda _: None,
) -> Parity:
    """Compares tensors and detections at every bucket and batch size.

    Args:
        artifact: a stamped file; its certificate is not looked at.
        source: what it was made from.
        images: at least one, RGB; each is cropped to each bucket's aspect ratio.
        description: of the images.
        report: is told of each bucket that was compared.

    Raises:
        VerificationFailed: a candidate is NaN or infinite, or a batch has another shape.
    """
    tensors = detections = Difference()
    pairs, total, lowest_conf = 0, 0, 1.0
    for outputs in outputs_by_bucket(artifact, source, images):
        cases = outputs.cases
        for batch in outputs.batches:
            tensors |= compare_tensors(batch, cases[: len(batch)])
        parameters, found = outputs.detections()
        lowest_conf = min(lowest_conf, parameters.conf)
        for case, ours in zip(cases, found, strict=True):
            rows = reference_detections(case, parameters)
            difference, matched, both = matched_difference(ours, rows)
            detections |= difference
            pairs += matched
            total += both
        height, width = cases[0].prepared.bucket_hw
        report(f"{height}x{width}, {total // 2} detections so far")
    if total == 0:
        raise VerificationFailed(f"no detection to compare in {description}: give others (--data)")
    return Parity(
        tensors=tensors,
        detections=detections,
        compared=total // 2,
        agreement=2 * pairs / total,
        images=down_to(lowest_conf, description),
    )


def compare_tensors(batch: NDArray[np.float32], cases: Sequence[Case]) -> Difference:
    """Compares the candidates (B, K, 6) of one run of the cases.

    Raises:
        VerificationFailed: a value is no number.
    """
    worst = Difference()
    for candidates, case in zip(batch, cases, strict=True):
        difference = nearest_difference(candidates, case.predictions)
        if difference == DIFFERENT:
            raise VerificationFailed(f"{batch_of(cases)}: a candidate is NaN or infinite")
        worst |= difference
    return worst
