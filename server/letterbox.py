"""Resize an image into the model's input without changing its aspect ratio, and back."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

PAD_VALUE = 114  # grey level YOLO is trained with


@dataclass(frozen=True, slots=True)
class Letterbox:
    """How one image was placed in the model's input.

    Attributes:
        resized_hw: size of the image in the input, (height, width) in pixels.
        pad_left, pad_top: grey input pixels before the image.
        original_hw: original image size, (height, width) in pixels.
        input_hw: model input size, (height, width) in pixels.
    """

    resized_hw: tuple[int, int]
    pad_left: int
    pad_top: int
    original_hw: tuple[int, int]
    input_hw: tuple[int, int]

    def to_original(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Moves boxes from input pixels to original pixels, clipped to the image.

        Args:
            boxes: (N, 4) float32, xyxy in input pixels.

        Returns:
            (N, 4) float32, xyxy in original pixels; x in [0, width], y in [0, height].

        Source:
            ultralytics 8.4.190 `scale_boxes`: each axis has its own scale, because the two
            sides were rounded apart.
        """
        height, width = self.original_hw
        offset = np.array([self.pad_left, self.pad_top] * 2, dtype=np.float32)
        scale = np.array([self.resized_hw[1] / width, self.resized_hw[0] / height] * 2, np.float32)
        limit = np.array([width, height] * 2, dtype=np.float32)
        return ((boxes - offset) / scale).clip(np.float32(0), limit)


def letterbox(
    image: NDArray[np.uint8],
    input_hw: tuple[int, int],
    *,
    full_hw: tuple[int, int] | None = None,
) -> tuple[NDArray[np.uint8], Letterbox]:
    """Fits an image into the model's input, centred on grey.

    Args:
        image: (H, W, 3) uint8, RGB, 0..255; H, W >= 1.
        input_hw: model input size, (height, width) in pixels; a bucket.
        full_hw: the size that the image is scaled for, (height, width) in pixels: the largest
            bucket, when `input_hw` was chosen with `choose_bucket`. By default `input_hw`.

    Returns:
        (height, width, 3) uint8, RGB, contiguous; and how to undo it.

    Source:
        ultralytics 8.4.190 `LetterBox(full_hw, auto=True, scaleup=True, center=True)` where
        `input_hw` is its minimal rectangle, and `auto=False` where it is `full_hw`; the
        rounding of the size and the pads is part of the contract.
    """
    original_hw = image.shape[0], image.shape[1]
    height, width = resized_hw = _resized_hw(original_hw, full_hw or input_hw)
    if resized_hw != original_hw:
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR).astype(
            np.uint8, copy=False
        )
    pad_top = round((input_hw[0] - height) / 2 - 0.1)
    pad_left = round((input_hw[1] - width) / 2 - 0.1)
    canvas = np.full((*input_hw, 3), PAD_VALUE, dtype=np.uint8)
    canvas[pad_top : pad_top + height, pad_left : pad_left + width] = image
    return canvas, Letterbox(resized_hw, pad_left, pad_top, original_hw, input_hw)


def full_size(buckets: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The bucket that sets every image's scale: the one of largest area."""
    return max(buckets, key=lambda hw: hw[0] * hw[1])


def choose_bucket(
    original_hw: tuple[int, int], buckets: Sequence[tuple[int, int]]
) -> tuple[int, int]:
    """Chooses the input shape that holds an image with the least padding.

    Args:
        original_hw: image size, (height, width) in pixels, >= 1.
        buckets: input shapes, (height, width) in pixels, at least one.

    Returns:
        The bucket of smallest area that holds the image at the scale it has in `full_size`.
        Where that is the image's minimal rectangle, it is the shape that ultralytics
        `predict` with `rect=True` infers at.
    """
    height, width = _resized_hw(original_hw, full_size(buckets))
    holding = [hw for hw in buckets if hw[0] >= height and hw[1] >= width]
    return min(holding, key=lambda hw: hw[0] * hw[1])


def _resized_hw(original_hw: tuple[int, int], full_hw: tuple[int, int]) -> tuple[int, int]:
    scale = min(full_hw[0] / original_hw[0], full_hw[1] / original_hw[1])
    # A 1 x 5000 image would round to a height of 0.
    return max(1, round(original_hw[0] * scale)), max(1, round(original_hw[1] * scale))
