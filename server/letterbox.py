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
        scale: input pixels per original pixel, > 0.
        pad_left, pad_top: grey input pixels before the image.
        original_hw: original image size, (height, width) in pixels.
        input_hw: model input size, (height, width) in pixels.
    """

    scale: float
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
        """
        height, width = self.original_hw
        offset = np.array([self.pad_left, self.pad_top] * 2, dtype=np.float32)
        limit = np.array([width, height] * 2, dtype=np.float32)
        original = (boxes - offset) / np.float32(self.scale)
        return original.clip(np.float32(0), limit)


def letterbox(
    image: NDArray[np.uint8], input_hw: tuple[int, int]
) -> tuple[NDArray[np.uint8], Letterbox]:
    """Fits an image into the model's input, centred on grey.

    Args:
        image: (H, W, 3) uint8, RGB, 0..255; H, W >= 1.
        input_hw: model input size, (height, width) in pixels, multiples of the stride.

    Returns:
        (height, width, 3) uint8, RGB, contiguous; and how to undo it.

    Source:
        ultralytics 8.4.190 `LetterBox(auto=False, scaleup=True, center=True)`, the transform
        used in training; the rounding of the size and the pads is part of the contract.
    """
    raise NotImplementedError


def choose_bucket(
    original_hw: tuple[int, int], buckets: Sequence[tuple[int, int]]
) -> tuple[int, int]:
    """Chooses the input shape that holds an image with the least padding.

    Args:
        original_hw: image size, (height, width) in pixels.
        buckets: input shapes, (height, width) in pixels, at least one.

    Returns:
        The bucket of smallest area that holds the image at the scale it has in the largest.
    """
    raise NotImplementedError
