"""Measures how far an artifact of reduced precision is from its source.

Nothing here is a limit: whether the precision is good enough is decided on labelled pictures, by
average precision. That nothing but the precision differs was shown before, in float32.
"""

from collections.abc import Callable, Sequence

import numpy as np

from export.errors import VerificationFailed
from export.sources.source import Source
from export.verification.compare import (
    DIFFERENT,
    Difference,
    Parity,
    matched_difference,
    nearest_difference,
)
from export.verification.pictures import Image
from export.verification.reference import BATCH_SIZES, Case, make_cases, reference_detections
from export.verification.verify import down_to, run_batch, threshold
from server.artifact import Artifact
from server.detector import finish
from server.postprocess import DetectParameters
from server.session import Session


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
    session = Session.open(artifact, device="cpu")
    tensors = detections = Difference()
    pairs, total, lowest_conf = 0, 0, 1.0
    try:
        for bucket_hw in artifact.metadata.buckets:
            cases = make_cases(source, artifact.metadata, images, bucket_hw)
            for size in BATCH_SIZES:
                tensors |= compare_tensors(artifact, session, cases[:size])
            parameters = DetectParameters(conf=threshold(cases))
            lowest_conf = min(lowest_conf, parameters.conf)
            batch = session.run(np.stack([case.prepared.canvas for case in cases]))
            for candidates, case in zip(batch, cases, strict=True):
                ours = finish(candidates, case.prepared, artifact.metadata, parameters)
                rows = reference_detections(case, parameters)
                difference, matched, both = matched_difference(ours, rows)
                detections |= difference
                pairs += matched
                total += both
            report(f"{bucket_hw[0]}x{bucket_hw[1]}, {total // 2} detections so far")
    finally:
        session.close()
    if total == 0:
        raise VerificationFailed(f"no detection to compare in {description}: give others (--data)")
    return Parity(
        tensors=tensors,
        detections=detections,
        compared=total // 2,
        agreement=2 * pairs / total,
        images=down_to(lowest_conf, description),
    )


def compare_tensors(artifact: Artifact, session: Session, cases: Sequence[Case]) -> Difference:
    """Runs the cases as one batch and compares their candidates.

    Raises:
        VerificationFailed: another shape, or a value that is no number.
    """
    batch, where = run_batch(artifact, session, cases)
    worst = Difference()
    for candidates, case in zip(batch, cases, strict=True):
        difference = nearest_difference(candidates, case.predictions)
        if difference == DIFFERENT:
            raise VerificationFailed(f"{where}: a candidate is NaN or infinite")
        worst |= difference
    return worst
