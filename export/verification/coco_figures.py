"""COCO average precision and plain recall of detections against labels."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from export.verification.yolo_dataset import Boxes, LabelledImage

MATCH_IOU = 0.5


@dataclass(frozen=True)
class Accuracy:
    """COCO figures in 0..1; NaN where the data set has no object to find."""

    map50_95: float
    map50: float
    per_class: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Recall:
    """How many labelled objects were found."""

    conf: float
    found: int
    labelled: int
    per_class: dict[str, float]

    @property
    def share(self) -> float:
        """Found objects as a share of the labelled ones; NaN when there are none."""
        return self.found / self.labelled if self.labelled else float("nan")


def coco_accuracy(
    images: Sequence[LabelledImage],
    detections: Sequence[Boxes],
    names: Mapping[int, str],
    max_det: int = 300,
) -> Accuracy:
    """Scores detections with pycocotools, at most `max_det` an image.

    Args:
        images: The labelled images; those without objects count too.
        detections: One an image, in the same order.
        names: Class names by id.
        max_det: Detections kept an image and class, best first; COCO's own tables use 100.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools narrates
        evaluation = COCOeval(
            coco([image.truth for image in images], images, names),
            coco(detections, images, names),
            "bbox",
        )
        evaluation.params.maxDets = [max_det]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, float("inf")]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    # (IoU 0.50 to 0.95, recall points, class); -1 where a class has no labelled object
    precision = evaluation.eval["precision"][:, :, :, 0, 0]
    precision = np.where(precision < 0, np.nan, precision)
    per_class = {
        names[class_id]: {
            "ap50_95": mean(precision[:, :, k]),
            "ap50": mean(precision[0, :, k]),
        }
        for k, class_id in enumerate(evaluation.params.catIds)
    }
    return Accuracy(mean(precision), mean(precision[0]), per_class)


def mean(values: NDArray[np.float64]) -> float:
    """Mean of what is not NaN; NaN when nothing is left."""
    there = values[~np.isnan(values)]
    return float(there.mean()) if there.size else float("nan")


def coco(
    per_image: Sequence[Boxes], images: Sequence[LabelledImage], names: Mapping[int, str]
) -> COCO:
    """Puts boxes into the form that pycocotools reads; ids start at 1, as it takes 0 for none."""
    annotations: list[dict[str, Any]] = []
    for image_id, boxes in enumerate(per_image, start=1):
        for (x1, y1, x2, y2), class_id, score in zip(
            boxes.xyxy.tolist(), boxes.class_ids.tolist(), boxes.scores.tolist(), strict=True
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": class_id,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                    "score": score,
                }
            )
    table = COCO()
    table.dataset = {
        "images": [
            {"id": image_id, "width": image.width, "height": image.height}
            for image_id, image in enumerate(images, start=1)
        ],
        "categories": [{"id": class_id, "name": name} for class_id, name in names.items()],
        "annotations": annotations,
    }
    table.createIndex()
    return table


def recall_at(
    conf: float,
    images: Sequence[LabelledImage],
    detections: Sequence[Boxes],
    names: Mapping[int, str],
) -> Recall:
    """Counts the labelled objects that a detection of their class, scored above `conf`, found."""
    found: list[tuple[int, bool]] = []
    for image, boxes in zip(images, detections, strict=True):
        hits = match(image.truth, boxes, conf)
        found += zip(image.truth.class_ids.tolist(), hits.tolist(), strict=True)
    per_class = {
        name: mean(np.array([hit for label, hit in found if label == class_id], np.float64))
        for class_id, name in names.items()
    }
    return Recall(conf, sum(hit for _, hit in found), len(found), per_class)


def match(truth: Boxes, detected: Boxes, conf: float) -> NDArray[np.bool_]:
    """Pairs detections with labels one to one, the best score choosing first.

    A detection takes the free label of its class that it overlaps most, where their IoU is at least
    0.5. Detections at or below `conf` take none.

    Returns:
        (N,) bool, true for the labels that were taken.
    """
    taken = np.zeros(len(truth.class_ids), np.bool_)
    overlap = iou(detected.xyxy, truth.xyxy)
    overlap[detected.class_ids[:, None] != truth.class_ids[None, :]] = 0
    for row in np.argsort(-detected.scores, kind="stable"):
        free = np.where(taken, 0, overlap[row])
        if detected.scores[row] > conf and free.size and free.max() >= MATCH_IOU:
            taken[free.argmax()] = True
    return taken


def iou(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of (N, 4) and (M, 4) xyxy boxes: (N, M)."""
    top_left = np.maximum(a[:, None, :2], b[None, :, :2])
    bottom_right = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared: NDArray[np.float64] = np.clip(bottom_right - top_left, 0, None).prod(axis=2)
    area_a, area_b = (
        np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1) for boxes in (a, b)
    )
    union = area_a[:, None] + area_b[None, :] - shared
    return shared / np.where(union > 0, union, 1)
