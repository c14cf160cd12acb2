"""From candidate rows to detections: the greedy non-maximum suppression of ultralytics."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Detections:
    """Detections of one image, best score first.

    Attributes:
        boxes: (N, 4) float32, xyxy; the frame is said where they are made.
        scores: (N,) float32, 0..1.
        class_ids: (N,) int64.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    class_ids: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class DetectParameters:
    """What a request may choose; raises `InvalidParameter` when out of range."""

    conf: float = 0.25
    iou: float = 0.7
    max_det: int = 300
    classes: tuple[int, ...] | None = None
    agnostic_nms: bool = False


def nms(
    candidates: NDArray[np.float32], parameters: DetectParameters, *, anchors: int
) -> tuple[Detections, bool]:
    """Suppresses overlapping candidates; (detections in input pixels, truncated)."""
    raise NotImplementedError
