"""The source's side of every comparison: its predictions between ultralytics' own steps.

Letterbox, NMS and the way back to original pixels are ultralytics', not the server's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from ultralytics.data.augment import LetterBox
from ultralytics.utils.nms import non_max_suppression
from ultralytics.utils.ops import scale_boxes

from export.errors import VerificationFailed
from export.sources.source import Source
from export.verification.images import Image, cropped_to
from server.inference.artifact import Metadata
from server.inference.detector import Prepared, prepare_image
from server.vision.nms import DetectParameters

BATCH_SIZES = (1, 2, 3, 8)
PADDED = 0.92  # share of its side that an image fills where it is to be padded


@dataclass(frozen=True, slots=True)
class Case:
    """One image, prepared by the serving code, and what the source makes of it."""

    image: Image
    prepared: Prepared
    predictions: NDArray[np.float32]  # (4 + classes, A), boxes xywh in input pixels


def make_case(image: Image, source: Source, metadata: Metadata) -> Case:
    """Lets the serving code choose the bucket, and the source predict at that shape."""
    prepared = prepare_image(image, metadata)
    canvas = LetterBox(prepared.bucket_hw, auto=False)(image=image)
    x = canvas.transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255)
    return Case(image, prepared, source.predict(np.ascontiguousarray(x)))


def make_cases(
    source: Source, metadata: Metadata, images: Sequence[Image], bucket_hw: tuple[int, int]
) -> list[Case]:
    """As many cases of one bucket as the largest batch; images repeat, turned, when too few.

    Every other image fills its bucket; those between need padding at one pair of sides.

    Raises:
        VerificationFailed: when the serving code would put an image into another bucket.
    """
    cases = []
    height, width = bucket_hw
    slimmer = (height, round(width * PADDED)) if height > width else (round(height * PADDED), width)
    for i in range(max(BATCH_SIZES)):
        turned = np.rot90(images[i % len(images)], i // len(images))
        image = cropped_to(turned, slimmer if i % 2 else bucket_hw)
        case = make_case(image, source, metadata)
        if case.prepared.bucket_hw != bucket_hw:
            raise VerificationFailed(
                f"an image of {image.shape[0]}x{image.shape[1]} went to bucket "
                f"{case.prepared.bucket_hw}, not to {bucket_hw}"
            )
        cases.append(case)
    return cases


def reference_detections(case: Case, parameters: DetectParameters) -> NDArray[np.float32]:
    """(N, 6) xyxy in original pixels, score, class id: ultralytics' NMS and its way back."""
    (rows,) = non_max_suppression(
        torch.from_numpy(case.predictions.copy())[None],
        parameters.conf,
        parameters.iou,
        max_det=parameters.max_det,
    )
    scale_boxes(case.prepared.bucket_hw, rows[:, :4], case.image.shape[:2])
    detections: NDArray[np.float32] = rows.numpy()
    return detections
