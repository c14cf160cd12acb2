"""From candidate rows to detections: the greedy non-maximum suppression of ultralytics.

Overlaps are found by ONNX Runtime's operator on one CPU thread: in numpy it takes 4 to 12 ms for
1,000 boxes, here 0.1 to 0.2 ms for the best 300 of them.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.errors import InvalidParameter
from server.ort import onnxruntime

CLASS_OFFSET_PX = 7680  # moves the boxes of different classes apart, so that they never overlap

# One node, NonMaxSuppression; `python -m export.suppression_graph` writes it.
GRAPH = Path(__file__).with_name("suppression.onnx")


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


def suppress(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], *, iou: float, most: int
) -> NDArray[np.int64]:
    """Chooses boxes by score, each unless it overlaps one that was chosen before.

    Args:
        boxes: (N, 4) float32, xyxy, any unit. A box with x2 < x1, y2 < y1 or a coordinate that
            is not finite overlaps nothing.
        scores: (N,) float32, not NaN.
        iou: threshold; a box goes when its overlap is larger, in float32 arithmetic.
        most: at most so many are chosen, >= 1.

    Returns:
        (M,) int64 indices, best score first, of equal scores the earlier box first.

    Source:
        ultralytics 8.4.190 `TorchNMS.nms`, except that of two empty boxes in one place, whose
        overlap is 0/0, both stay, as in torchvision.
    """
    if not len(boxes):
        return np.zeros(0, np.int64)
    finite = np.isfinite(boxes)
    if not finite.all():
        boxes = np.where(finite.all(axis=1, keepdims=True), boxes, np.float32(0))
    # The operator would put corners into order; so a box that is inside out gets no area.
    corners = np.concatenate([boxes[:, :2], np.maximum(boxes[:, :2], boxes[:, 2:])], axis=1)
    feeds = {
        "boxes": corners[None],
        "scores": np.ascontiguousarray(scores)[None, None],
        "most": np.array([min(most, len(boxes))], np.int64),
        "iou": np.array([iou], np.float32),
    }
    (chosen,) = _session().run(None, feeds)  # (M, 3) int64: batch, class, index
    indices: NDArray[np.int64] = chosen[:, 2]
    return indices


def load() -> None:
    """Loads the operator now rather than at the first call, in about 10 ms.

    Raises:
        Exception: ONNX Runtime can't; its exceptions have no common base.
    """
    _session()


@cache
def _session() -> Any:
    """One for the process: any number of threads may run it at the same time."""
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # as of the model
    # Its arena would be one more beside the model's.
    options.enable_cpu_mem_arena = False
    return ort.InferenceSession(str(GRAPH), options, providers=["CPUExecutionProvider"])
