"""Average precision of a source and of its artifact on the same labelled images."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export.errors import DatasetInvalid
from export.sources.source import Source
from export.verification.coco_figures import Accuracy as CocoFigures
from export.verification.coco_figures import coco_accuracy
from export.verification.images import MAX_PIXELS, Image, describe_split
from export.verification.reference import make_case, reference_detections
from export.verification.yolo_dataset import Boxes, LabelledImage, read_dataset
from server.errors import BadInput
from server.inference.artifact import Artifact
from server.inference.certificate import Accuracy
from server.inference.detector import Detector
from server.inference.session import Session
from server.vision.decode import decode
from server.vision.nms import DetectParameters

MOST_IMAGES = 500  # enough to see a tenth of a point of the same network in two precisions
PARAMETERS = DetectParameters(conf=0.001, iou=0.7, max_det=300)  # ultralytics' `val`
REPORT_EVERY_S = 5.0

Detect = Callable[[Image], Boxes]  # boxes in pixels of the upright image, class ids of the model


@dataclass(frozen=True)
class Labelled:
    """A data set's split whose classes are those of a model.

    Attributes:
        names: class names by id, the model's ids.
        images: labelled with the model's ids.
        description: in words.
    """

    names: dict[int, str]
    images: list[LabelledImage]
    description: str


def read_labelled(data_yaml: Path, class_names: Sequence[str]) -> Labelled:
    """Reads the split `val`, its classes brought to the model's ids by their names.

    Raises:
        DatasetInvalid: it can't be read, nothing in it is labelled, or it names a class that
            the model does not have.
    """
    names, images = read_dataset(data_yaml, "val", MOST_IMAGES)
    if unknown := sorted({str(name) for name in names.values()} - set(class_names)):
        raise DatasetInvalid(
            f"{data_yaml} names {', '.join(unknown)}, which the model does not know; "
            f"its classes are {', '.join(class_names)}"
        )
    to_model = {class_id: list(class_names).index(str(name)) for class_id, name in names.items()}
    relabelled = []
    for image in images:
        ids = np.array([to_model[i] for i in image.truth.class_ids.tolist()], np.int64)
        truth = Boxes(image.truth.xyxy, ids, image.truth.scores)
        relabelled.append(LabelledImage(image.path, image.width, image.height, truth))
    if not any(len(image.truth.class_ids) for image in relabelled):
        raise DatasetInvalid(f"{data_yaml}: nothing is labelled in the split 'val'")
    description = describe_split(data_yaml, "val")
    return Labelled(dict(enumerate(class_names)), relabelled, description)


def compare_accuracy(
    artifact: Artifact,
    source: Source,
    labelled: Labelled,
    report: Callable[[str], None] = lambda _: None,
) -> Accuracy:
    """Measures both on the same images, each through its own pre- and postprocessing.

    Args:
        artifact: a stamped file; its certificate is not looked at.
        source: what it was made from.
        labelled: the images.
        report: is told every few seconds how far it is.

    Raises:
        DatasetInvalid: an image can't be read.
    """

    def by_source(image: Image) -> Boxes:
        rows = reference_detections(make_case(image, source, artifact.metadata), PARAMETERS)
        return Boxes(
            rows[:, :4].astype(np.float64), rows[:, 5].astype(np.int64), rows[:, 4].astype(float)
        )

    def by_artifact(image: Image) -> Boxes:
        (found,) = detector.detect([image], PARAMETERS)
        detections = found.detections
        return Boxes(
            detections.boxes.astype(np.float64),
            detections.class_ids,
            detections.scores.astype(np.float64),
        )

    session = Session.open(artifact, device="cpu")
    detector = Detector(artifact, session)
    try:
        theirs = coco_figures(by_source, labelled, "the source", report)
        ours = coco_figures(by_artifact, labelled, "the artifact", report)
    finally:
        session.close()
    return Accuracy(
        data=labelled.description,
        images=len(labelled.images),
        objects=sum(len(image.truth.class_ids) for image in labelled.images),
        source_map50_95=theirs.map50_95,
        source_map50=theirs.map50,
        artifact_map50_95=ours.map50_95,
        artifact_map50=ours.map50,
    )


def coco_figures(
    detect: Detect, labelled: Labelled, who: str, report: Callable[[str], None]
) -> CocoFigures:
    """COCO average precision of a detector; tells of its progress every few seconds."""
    found, last_report_s = [], time.perf_counter()
    for done, image in enumerate(labelled.images, 1):
        try:
            pixels = decode(image.path.read_bytes(), max_pixels=MAX_PIXELS)
        except (BadInput, OSError) as error:
            raise DatasetInvalid(f"{image.path}: {error}") from None
        found.append(detect(pixels))
        if time.perf_counter() - last_report_s > REPORT_EVERY_S:
            last_report_s = time.perf_counter()
            report(f"average precision of {who}: {done} of {len(labelled.images)} images")
    return coco_accuracy(labelled.images, found, labelled.names, PARAMETERS.max_det)
