"""From candidate rows to detections: the greedy non-maximum suppression of ultralytics."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from server.errors import InvalidParameter
from server.suppression import suppress

CLASS_OFFSET_PX = 7680  # moves the boxes of different classes apart, so that they never overlap


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
    """What a request may choose.

    Attributes:
        conf: only scores above it count, 0..1.
        iou: of two boxes of a class that overlap by more, the better stays, 0..1.
        max_det: most detections of an image, >= 1.
        classes: class ids to look for, >= 0; None looks for all.
        agnostic_nms: boxes of different classes suppress each other too.
        clip: boxes end where the image does. Suppression comes before, and needs the whole boxes:
            who does it again, with other thresholds, asks for them.

    Raises:
        InvalidParameter: when one is out of its range, with the value and the range.
    """

    conf: float = 0.25
    iou: float = 0.7
    max_det: int = 300
    classes: tuple[int, ...] | None = None
    agnostic_nms: bool = False
    clip: bool = True

    def __post_init__(self) -> None:
        for name, value in (("conf", self.conf), ("iou", self.iou)):
            if not 0 <= value <= 1:  # also refuses NaN
                raise InvalidParameter(f"{name} is {value}, it must be from 0 to 1")
        if self.max_det < 1:
            raise InvalidParameter(f"max_det is {self.max_det}, it must be at least 1")
        for class_id in self.classes or ():
            if class_id < 0:
                raise InvalidParameter(f"class id {class_id} is below 0")


def nms(
    candidates: NDArray[np.float32], parameters: DetectParameters, *, anchors: int
) -> tuple[Detections, bool]:
    """Keeps the best of each group of overlapping candidates.

    Args:
        candidates: (K, 6) float32: x1, y1, x2, y2 in input pixels, score, class id; best first.
        parameters: thresholds.
        anchors: anchor points of the input the candidates were chosen from, >= K.

    Returns:
        The detections in input pixels, best first, of equal scores the earlier candidate
        first; and whether they may be incomplete, because the last candidate still passes
        `conf` and there were more anchor points than candidates.

    Source:
        ultralytics 8.4.190 `non_max_suppression(multi_label=False)` with `TorchNMS.nms`, in
        the same float32 arithmetic: the class offset costs high class ids some precision,
        and which boxes go depends on it.
    """
    # Like torch, compare with the threshold rounded to float32.
    conf = np.float32(parameters.conf)
    count = len(candidates)
    truncated = bool(0 < count < anchors and candidates[-1, 4] > conf)
    rows = candidates[candidates[:, 4] > conf]
    if parameters.classes is not None:
        rows = rows[np.isin(rows[:, 5], np.array(parameters.classes, np.float32))]
    boxes = rows[:, :4]
    if not parameters.agnostic_nms:
        boxes = boxes + rows[:, 5:6] * np.float32(CLASS_OFFSET_PX)
    rows = rows[suppress(boxes, rows[:, 4], iou=parameters.iou, most=parameters.max_det)]
    return Detections(
        boxes=np.ascontiguousarray(rows[:, :4]),
        scores=np.ascontiguousarray(rows[:, 4]),
        class_ids=rows[:, 5].astype(np.int64),
    ), truncated
