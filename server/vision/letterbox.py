"""Resize an image into the model's input without changing its aspect ratio, and back."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

PAD_VALUE = 114  # grey level YOLO is trained with


@dataclass(frozen=True, slots=True)
class Frame:
    """Where an image that may have been decoded at reduced scale lies in the original.

    Its pixels cover whole multiples of `reduction`, so the last ones can reach over the edge of
    the original; in an image that EXIF turned, these may be the first.

    Attributes:
        original_hw: upright original size, (height, width) in pixels.
        covered_hw: original pixels that the image's rows and columns stand for; >= original_hw.
        before_hw: how many of these lie (above, left of) the original; >= 0.
    """

    original_hw: tuple[int, int]
    covered_hw: tuple[int, int]
    before_hw: tuple[int, int] = (0, 0)

    @classmethod
    def whole(cls, image: NDArray[np.uint8]) -> "Frame":
        """The frame of an (H, W, 3) image that was not reduced."""
        height, width = image.shape[:2]
        return cls((height, width), (height, width))


@dataclass(frozen=True, slots=True)
class Letterbox:
    """How one image was placed in the model's input.

    Attributes:
        resized_hw: size of the image in the input, (height, width) in pixels.
        pad_left, pad_top: grey input pixels before the image.
        frame: where the image lies in the original.
        input_hw: model input size, (height, width) in pixels.
    """

    resized_hw: tuple[int, int]
    pad_left: int
    pad_top: int
    frame: Frame
    input_hw: tuple[int, int]

    @property
    def original_hw(self) -> tuple[int, int]:
        """Original image size, (height, width) in pixels."""
        return self.frame.original_hw

    def to_original(self, boxes: NDArray[np.float32], *, clip: bool = True) -> NDArray[np.float32]:
        """Moves boxes from input pixels to original pixels.

        Args:
            boxes: (N, 4) float32, xyxy in input pixels.
            clip: whether what lies beyond the image is cut off.

        Returns:
            (N, 4) float32, xyxy in original pixels; clipped, x in [0, width], y in [0, height].

        Source:
            ultralytics 8.4.190 `scale_boxes`: each axis has its own scale, because the two
            sides were rounded apart.
        """
        (height, width), (covered_h, covered_w) = self.frame.original_hw, self.frame.covered_hw
        offset = np.array([self.pad_left, self.pad_top] * 2, dtype=np.float32)
        scale = np.array(
            [self.resized_hw[1] / covered_w, self.resized_hw[0] / covered_h] * 2, np.float32
        )
        before = np.array(self.frame.before_hw[::-1] * 2, dtype=np.float32)
        limit = np.array([width, height] * 2, dtype=np.float32)
        moved: NDArray[np.float32] = (boxes - offset) / scale - before
        return moved.clip(np.float32(0), limit) if clip else moved


def letterbox(
    image: NDArray[np.uint8],
    input_hw: tuple[int, int],
    *,
    full_hw: tuple[int, int] | None = None,
    frame: Frame | None = None,
    canvas: NDArray[np.uint8] | None = None,
) -> tuple[NDArray[np.uint8], Letterbox]:
    """Fits an image into the model's input, centred on grey.

    Args:
        image: (H, W, 3) uint8, RGB, 0..255; H, W >= 1.
        input_hw: model input size, (height, width) in pixels; a bucket.
        full_hw: the size that the image is scaled for, (height, width) in pixels: the largest
            bucket, when `input_hw` was chosen with `choose_bucket`. By default `input_hw`.
        frame: of an image that was decoded at reduced scale.
        canvas: (height, width, 3) uint8, contiguous: where it is written; new memory by default.

    Returns:
        The canvas, (height, width, 3) uint8, RGB; and how to undo it.

    Source:
        ultralytics 8.4.190 `LetterBox(full_hw, auto=True, scaleup=True, center=True)` where
        `input_hw` is its minimal rectangle, and `auto=False` where it is `full_hw`; the
        rounding of the size and the pads is part of the contract.
    """
    frame = frame or Frame.whole(image)
    height, width = resized_hw(frame.original_hw, full_hw or input_hw)
    top = round((input_hw[0] - height) / 2 - 0.1)
    left = round((input_hw[1] - width) / 2 - 0.1)
    if canvas is None:
        canvas = np.empty((*input_hw, 3), np.uint8)
    for padding in (
        canvas[:top],
        canvas[top + height :],
        canvas[top : top + height, :left],
        canvas[top : top + height, left + width :],
    ):
        padding.fill(PAD_VALUE)
    inside = canvas[top : top + height, left : left + width]
    if image.shape[:2] == (height, width):
        inside[:] = image
    else:
        written = cv2.resize(image, (width, height), dst=inside, interpolation=cv2.INTER_LINEAR)
        assert np.may_share_memory(written, canvas)  # OpenCV took it as it is
    return canvas, Letterbox((height, width), left, top, frame, input_hw)


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
    height, width = resized_hw(original_hw, full_size(buckets))
    holding = [hw for hw in buckets if hw[0] >= height and hw[1] >= width]
    return min(holding, key=lambda hw: hw[0] * hw[1])


def resized_hw(original_hw: tuple[int, int], full_hw: tuple[int, int]) -> tuple[int, int]:
    """The (height, width) in pixels that an image has in an input it is scaled for."""
    scale = min(full_hw[0] / original_hw[0], full_hw[1] / original_hw[1])
    # A 1 x 5000 image would round to a height of 0.
    return max(1, round(original_hw[0] * scale)), max(1, round(original_hw[1] * scale))
