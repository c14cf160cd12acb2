"""From comparisons to a certificate, or to the reason why there is none."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx

from export.errors import AccuracyLost
from export.precision.half import rounding
from export.sources.source import Source
from export.verification.agreement import measure_agreement
from export.verification.evaluation import Labelled, compare_accuracy, read_labelled
from export.verification.images import Image, comparison_images
from export.verification.reference import BATCH_SIZES
from export.verification.verify import verify
from server.inference.artifact import Artifact
from server.inference.certificate import Accuracy, Certificate, Precision, Verdict

# Largest loss of mAP50-95 that a precision may cost.
TOLERANCES: dict[Precision, float] = {"fp16": 0.001, "int8": 0.005}
SIGNIFICANT = 10  # tolerances: a source that scores less on the labelled images has little to lose

DRAFT = Certificate(
    created="",
    verdict="draft",
    tensor_max_abs_diff_boxes_px=-1,
    tensor_max_abs_diff_scores=-1,
    tensor_p90_abs_diff_boxes_px=-1,
    tensor_p90_abs_diff_scores=-1,
    detections_compared=0,
    detections_agreement=0,
    detections_max_box_diff_px=-1,
    detections_max_score_diff=-1,
    batch_sizes=(),
    buckets=(),
    images="",
)


@dataclass(frozen=True)
class Material:
    """What a source and its artifact are compared on.

    Attributes:
        images: (H, W, 3) uint8 RGB, at least one.
        description: of them, in words.
        labelled: images with labels; None where there are none.
    """

    images: Sequence[Image]
    description: str
    labelled: Labelled | None


def gather(data: Path | None, class_names: Sequence[str]) -> Material:
    """Images, and labels where a data set's YAML is given.

    Args:
        data: a folder of images, a data set's YAML (its split `val` is taken), or None:
            images are generated.
        class_names: the model's.

    Raises:
        DatasetInvalid: what is given can't be used; the message says why.
    """
    images, description = comparison_images(data)
    labelled = None
    if data is not None and data.is_file():
        labelled = read_labelled(data, class_names)
    return Material(images, description, labelled)


def certify(
    artifact: Artifact,
    source: Source,
    material: Material,
    *,
    accept_loss: bool = False,
    report: Callable[[str], None] = lambda _: None,
) -> Certificate:
    """Compares an artifact with its source; latency and size are for the caller to add.

    Args:
        artifact: a stamped file; its certificate is not looked at.
        source: what it was made from.
        material: what to compare on.
        accept_loss: what a reduced precision costs is noted and not judged.
        report: is told of each step.

    Raises:
        VerificationFailed: it does not answer as its source does.
        AccuracyLost: it is of a reduced precision that was not shown to be within its tolerance.
    """
    precision = artifact.metadata.precision
    compare = verify if precision == "fp32" else measure_agreement
    accuracy = None
    with as_computed(artifact) as ours:
        parity = compare(ours, source, material.images, material.description, report)
        if material.labelled is not None:
            accuracy = compare_accuracy(ours, source, material.labelled, report)
            report(f"measure average precision on {accuracy.images} images")
    return Certificate(
        created=datetime.now(UTC).date().isoformat(),
        verdict=judge(precision, accuracy, accept_loss),
        tensor_max_abs_diff_boxes_px=parity.tensors.boxes_px,
        tensor_max_abs_diff_scores=parity.tensors.scores,
        tensor_p90_abs_diff_boxes_px=parity.tensors.most_boxes_px,
        tensor_p90_abs_diff_scores=parity.tensors.most_scores,
        detections_compared=parity.compared,
        detections_agreement=parity.agreement,
        detections_max_box_diff_px=parity.detections.boxes_px,
        detections_max_score_diff=parity.detections.scores,
        batch_sizes=BATCH_SIZES,
        buckets=artifact.metadata.buckets,
        images=parity.images,
        accuracy=accuracy,
        accuracy_gate=TOLERANCES.get(precision),
    )


@contextmanager
def as_computed(artifact: Artifact) -> Iterator[Artifact]:
    """The artifact such that a CPU computes what the hardware does that its precision is for.

    In float16 that is another file, which rounds every value and overflows as a GPU does: the
    artifact itself a CPU runs in float32, and would find no fault with it.
    """
    if artifact.metadata.precision != "fp16":
        yield artifact
        return
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rounding.onnx"
        onnx.save(rounding(onnx.load(artifact.path)), path)
        yield replace(artifact, path=path)


def judge(precision: Precision, accuracy: Accuracy | None, accept_loss: bool) -> Verdict:
    """What a comparison came to.

    Raises:
        AccuracyLost: a reduced precision loses more than its tolerance, or that is not known, and
            the loss is not accepted.
    """
    if precision == "fp32":
        return "equal"  # `verify` would have raised
    tolerance = TOLERANCES[precision]
    significant = accuracy is not None and accuracy.source_map50_95 >= SIGNIFICANT * tolerance
    if accuracy is not None and significant and accuracy.loss <= tolerance:
        return "within_gate"
    if accept_loss:
        return "loss_accepted"
    if accuracy is None:
        raise AccuracyLost(
            f"{precision} has to show that it loses no more than {tolerance} of mAP50-95: give a "
            "data set with labels (--data DATA.yaml), or --accept-loss to do without"
        )
    if not significant:
        raise AccuracyLost(
            f"the source itself has a mAP50-95 of {accuracy.source_map50_95:.4f} on "
            f"{accuracy.data}, too little to tell what {precision} loses: is it the data that it "
            "was trained for? --accept-loss writes it all the same"
        )
    raise AccuracyLost(
        f"{precision} loses {accuracy.loss:.4f} of mAP50-95 ({accuracy.source_map50_95:.4f} to "
        f"{accuracy.artifact_map50_95:.4f} on {accuracy.images} images of {accuracy.data}), the "
        f"limit is {tolerance}; --accept-loss writes it all the same"
    )
