"""The images of samples/ in every input shape, and how far two models' answers are apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from server.inference.artifact import Metadata
from server.inference.detector import prepare_image, stacked
from server.vision.decode import decode

REPO = Path(__file__).resolve().parents[2]
MATCH_IOU = 0.5  # a detection of the other model is the same one if it overlaps by so much


def sample_images() -> list[NDArray[np.uint8]]:
    """The committed samples, (H, W, 3) uint8 RGB."""
    paths = sorted((REPO / "samples").glob("smear_*.jpg"))
    assert paths
    return [decode(path.read_bytes(), max_pixels=10_000_000) for path in paths]


def batch_of(metadata: Metadata, hw: tuple[int, int], size: int) -> NDArray[np.uint8]:
    """A batch (size, H, W, 3) of one input shape: crops of the samples, no two of them alike."""
    sources, canvases = sample_images(), []
    for i in range(size):
        image = sources[i % len(sources)]
        # A crop of the shape's aspect ratio, so that it is given that shape; each a bit smaller.
        scale = min(image.shape[0] / hw[0], image.shape[1] / hw[1]) * 0.97 ** (i // 3)
        height, width = int(hw[0] * scale), int(hw[1] * scale)
        prepared = prepare_image(image[:height, :width], metadata)
        assert prepared.bucket_hw == hw, (prepared.bucket_hw, hw)
        canvases.append(prepared.canvas)
    return stacked(canvases)


@dataclass(frozen=True, slots=True)
class Apart:
    """How far candidates or detections are apart.

    Attributes:
        scores: the largest difference.
        boxes_px: of a box's side.
        unmatched: of those that were compared, how many have no counterpart.
        compared: how many were.
    """

    scores: float
    boxes_px: float
    unmatched: int
    compared: int


def apart(
    ours: NDArray[np.float32], reference: NDArray[np.float32], *, least_score: float
) -> Apart:
    """Compares the rows of one image: x1, y1, x2, y2, score, class id.

    Args:
        ours: (N, 6), in any order.
        reference: (M, 6).
        least_score: rows of the reference below it are not looked at. A row of ours is the
            counterpart of one of these if it has its class and overlaps by `MATCH_IOU`; of
            several the one whose score and box are nearest.
    """
    rows = reference[reference[:, 4] >= least_score]
    scores, boxes_px, unmatched = 0.0, 0.0, 0
    for row in rows:
        same = ours[(ours[:, 5] == row[5]) & (overlap(ours[:, :4], row[:4]) >= MATCH_IOU)]
        if not len(same):
            unmatched += 1
            continue
        by_box = np.abs(same[:, :4] - row[:4]).max(axis=1)
        by_score = np.abs(same[:, 4] - row[4])
        best = int(np.argmin(by_box + 100 * by_score))
        scores, boxes_px = max(scores, float(by_score[best])), max(boxes_px, float(by_box[best]))
    return Apart(scores, boxes_px, unmatched, len(rows))


def farthest(each: Sequence[Apart]) -> Apart:
    """The largest of several."""
    return Apart(
        max(one.scores for one in each),
        max(one.boxes_px for one in each),
        sum(one.unmatched for one in each),
        sum(one.compared for one in each),
    )


def ranked_scores_apart(ours: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """The largest difference between the best, second best ... scores; no order of equals matters.

    Args:
        ours, reference: (B, K, 6), each image's rows best first.
    """
    return float(np.abs(ours[..., 4] - reference[..., 4]).max())


def overlap(boxes: NDArray[np.float32], box: NDArray[np.float32]) -> NDArray[np.float32]:
    """Intersection over union of (N, 4) xyxy boxes with one."""
    sides = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
    common = np.prod(np.maximum(sides, 0), axis=1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) + np.prod(box[2:] - box[:2])
    shares: NDArray[np.float32] = common / np.maximum(areas - common, 1e-9)
    return shares
