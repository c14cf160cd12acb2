"""The artifact's side of every comparison: what the serving code makes of each case."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from export.errors import VerificationFailed
from export.sources.source import Source
from export.verification.images import Image
from export.verification.reference import BATCH_SIZES, Case, make_cases
from server.inference.artifact import Artifact, Metadata
from server.inference.detector import ImageDetections, finish
from server.inference.session import Session
from server.vision.nms import DetectParameters

FEW = 20  # candidates above the default threshold, below which it is lowered to see more


@dataclass(frozen=True, slots=True)
class Outputs:
    """What an artifact makes of the cases of one bucket.

    Attributes:
        metadata: of the artifact.
        cases: as many as the largest batch.
        batches: candidates (B, K, 6) of the first cases, one run for each of `BATCH_SIZES`, the
            largest last.
    """

    metadata: Metadata
    cases: list[Case]
    batches: list[NDArray[np.float32]]

    def detections(self) -> tuple[DetectParameters, list[ImageDetections]]:
        """The thresholds, and what is detected in each case with them.

        To be asked for once the candidates were compared: NaN has no threshold.
        """
        parameters = DetectParameters(conf=threshold(self.cases))
        found = [
            finish(candidates, case.prepared, self.metadata, parameters)
            for candidates, case in zip(self.batches[-1], self.cases, strict=True)
        ]
        return parameters, found


def outputs_by_bucket(
    artifact: Artifact, source: Source, images: Sequence[Image]
) -> Iterator[Outputs]:
    """Runs an artifact at every bucket and batch size.

    Args:
        artifact: a stamped file.
        source: predicts what the cases are held against.
        images: at least one, RGB; each is cropped to each bucket's aspect ratio.

    Raises:
        VerificationFailed: a run gives another shape, or a case goes to another bucket.
    """
    session = Session.open(artifact, device="cpu")
    try:
        for bucket_hw in artifact.metadata.buckets:
            cases = make_cases(source, artifact.metadata, images, bucket_hw)
            batches = [run_batch(artifact, session, cases[:size]) for size in BATCH_SIZES]
            yield Outputs(artifact.metadata, cases, batches)
    finally:
        session.close()


def run_batch(artifact: Artifact, session: Session, cases: Sequence[Case]) -> NDArray[np.float32]:
    """The candidates of all cases from one run, (B, K, 6).

    Raises:
        VerificationFailed: another shape.
    """
    batch = session.run(np.stack([case.prepared.canvas for case in cases]))
    anchors = artifact.metadata.anchors(cases[0].prepared.bucket_hw)
    rows = min(artifact.metadata.max_candidates, anchors)
    if batch.shape != (len(cases), rows, 6):
        raise VerificationFailed(
            f"{batch_of(cases)}: the output is {batch.shape}, with {rows} rows expected"
        )
    return batch


def batch_of(cases: Sequence[Case]) -> str:
    """In words which run it was."""
    height, width = cases[0].prepared.bucket_hw
    return f"batch {len(cases)} at {height}x{width}"


def threshold(cases: Sequence[Case]) -> float:
    """The default confidence threshold, or a lower one where it would leave little to compare.

    The lower one lies in the widest gap between scores, where rounding decides least.
    """
    default = DetectParameters().conf
    scores = np.sort(np.concatenate([case.predictions[4:].max(0) for case in cases]))[::-1]
    if (scores > default).sum() >= FEW:
        return default
    below = scores[FEW : 20 * FEW]
    widest = int((below[:-1] - below[1:]).argmax())
    # Weighted towards the lower side: where all scores are the same, that is below them.
    return float(0.45 * below[widest] + 0.54 * below[widest + 1])


def down_to(conf: float, description: str) -> str:
    """The description of what was compared, with the threshold where it is not the default."""
    if conf < DetectParameters().conf:
        description += f", compared down to a confidence of {conf:.2g}"
    return description
