"""From candidate rows to detections: the greedy non-maximum suppression of ultralytics."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from server.errors import InvalidParameter

CLASS_OFFSET_PX = 7680  # moves the boxes of different classes apart, so that they never overlap
_BLOCK = 64  # a block's overlaps with 1,000 boxes fit the CPU's second cache


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

    Raises:
        InvalidParameter: when one is out of its range, with the value and the range.
    """

    conf: float = 0.25
    iou: float = 0.7
    max_det: int = 300
    classes: tuple[int, ...] | None = None
    agnostic_nms: bool = False

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
    rows = rows[np.argsort(-rows[:, 4], kind="stable")]
    boxes = rows[:, :4]
    if parameters.agnostic_nms:
        kept = _greedy(boxes, parameters.iou, parameters.max_det)
    else:
        kept = np.zeros(len(rows), np.bool_)
        shifted = boxes + rows[:, 5:6] * np.float32(CLASS_OFFSET_PX)
        for class_id in np.unique(rows[:, 5]):
            members = np.flatnonzero(rows[:, 5] == class_id)
            kept[members] = _greedy(shifted[members], parameters.iou, parameters.max_det)
    rows = rows[kept][: parameters.max_det]
    return Detections(
        boxes=np.ascontiguousarray(rows[:, :4]),
        scores=np.ascontiguousarray(rows[:, 4]),
        class_ids=rows[:, 5].astype(np.int64),
    ), truncated


def _greedy(boxes: NDArray[np.float32], iou: float, enough: int) -> NDArray[np.bool_]:
    """Marks the boxes that overlap no better marked one by more than `iou`.

    Goes by blocks: what the best 64 suppress is never compared with anything else.

    Args:
        boxes: (N, 4) float32, xyxy, best first.
        iou: threshold.
        enough: stops once so many are marked.

    Returns:
        (N,) bool; past the first `enough` marks it says nothing.
    """
    kept = np.zeros(len(boxes), np.bool_)
    undecided = np.arange(len(boxes))
    while len(undecided) and np.count_nonzero(kept) < enough:
        block = undecided[:_BLOCK]
        overlaps = _overlap(boxes[block], boxes[undecided], np.float32(iou))
        stays = np.ones(len(undecided), np.bool_)
        for i in range(len(block)):
            if stays[i]:
                stays[i + 1 :] &= ~overlaps[i, i + 1 :]
        kept[block] = stays[:_BLOCK]
        undecided = undecided[_BLOCK:][stays[_BLOCK:]]
    return kept


def _overlap(
    boxes: NDArray[np.float32], others: NDArray[np.float32], iou: np.float32
) -> NDArray[np.bool_]:
    """(N, 4) and (M, 4) boxes -> (N, M), true where their IoU is above `iou`."""
    x1, y1, x2, y2 = (each[:, None] for each in boxes.T)  # (N, 1) each
    other_x1, other_y1, other_x2, other_y2 = np.ascontiguousarray(others.T)  # (M,) each
    inner_w = np.minimum(x2, other_x2) - np.maximum(x1, other_x1)  # (N, M)
    inner_h = np.minimum(y2, other_y2) - np.maximum(y1, other_y1)
    inner = np.maximum(inner_w, 0, out=inner_w) * np.maximum(inner_h, 0, out=inner_h)
    area, other_area = (x2 - x1) * (y2 - y1), (other_x2 - other_x1) * (other_y2 - other_y1)
    union = area + other_area - inner
    with np.errstate(divide="ignore", invalid="ignore"):
        # Two empty boxes in one place have no IoU, and NaN > iou leaves both alone.
        above: NDArray[np.bool_] = inner / union > iou
    return above
