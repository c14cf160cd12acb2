"""An image with its detections drawn in."""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from server.vision.labels import Label, draw_labels
from server.vision.nms import Detections
from server.vision.palette import BLACK_RGB, WHITE_RGB, Colour, class_colour, text_colour

MAX_JPEG_SIDE = 65_500  # the format's own limit, less a little that encoders keep back
# Sizes are parts of the side of a square as large as the image: what they look like when it is
# fitted into a window does not depend on its pixels.
TEXT_PART, LINE_PART = 1 / 42, 1 / 330
LEAST_TEXT_PX = 10
SMALLEST_TEXT = 0.55  # of the usual size, for boxes that are small in their image


def annotate(
    image: NDArray[np.uint8], detections: Detections, class_names: Sequence[str]
) -> NDArray[np.uint8]:
    """Draws boxes with class name and score.

    Args:
        image: (H, W, 3) uint8 RGB; drawn into.
        detections: boxes in pixels of this image.
        class_names: by class id.

    Returns:
        The image; line and text sizes grow with it.
    """
    height, width = image.shape[:2]
    side = math.sqrt(height * width)
    corners = np.rint(np.clip(detections.boxes, 0, (width, height) * 2)).astype(np.int64)
    # The edges of a box that ends with the image lie one pixel outside.
    corners = np.minimum(corners, (width - 1, height - 1) * 2)
    thickness = max(1, round(side * LINE_PART))
    labels = []
    for box, score, class_id in zip(
        corners.tolist(), detections.scores.tolist(), detections.class_ids.tolist(), strict=True
    ):
        colour = class_colour(class_id)
        x1, y1, x2, y2 = box
        reach = _line_width(box, thickness) // 2
        outside = (x1 - reach, y1 - reach, x2 + reach + 1, y2 + reach + 1)
        labels.append(Label(class_id, class_names[class_id], score, outside, colour))
    # Worst first, so that the best detections' lines stay on top.
    for box, label in zip(corners[::-1].tolist(), reversed(labels), strict=True):
        _draw_box(image, box, label.colour, _line_width(box, thickness))
    draw_labels(image, labels, _text_px(corners, height, width))
    return image


def encode_image(image: NDArray[np.uint8], *, png: bool) -> tuple[bytes, str]:
    """Encodes (H, W, 3) uint8 RGB; the image is used up: afterwards its colours are exchanged.

    Returns:
        The file and its media type: a PNG where asked for, or where a JPEG can't be so large.
    """
    png = png or max(image.shape) > MAX_JPEG_SIDE
    cv2.cvtColor(image, cv2.COLOR_RGB2BGR, dst=image)
    done, encoded = cv2.imencode(".png" if png else ".jpg", image)
    assert done, "OpenCV encodes every uint8 RGB image"
    return encoded.tobytes(), "image/png" if png else "image/jpeg"


def _draw_box(image: NDArray[np.uint8], box: list[int], colour: Colour, line_width: int) -> None:
    x1, y1, x2, y2 = box
    if line_width > 1:
        # An edge that shows the line on a background of its own colour.
        edge = BLACK_RGB if text_colour(colour) == BLACK_RGB else WHITE_RGB
        wide = line_width + 2 * max(1, line_width // 5)
        cv2.rectangle(image, (x1, y1), (x2, y2), edge, wide)
    cv2.rectangle(image, (x1, y1), (x2, y2), colour, line_width)


def _line_width(box: list[int], usual: int) -> int:
    """Thinner where a box is so small that its line would hide what is in it."""
    shorter_side = min(box[2] - box[0], box[3] - box[1])
    return max(1, min(usual, shorter_side // 8))


def _text_px(boxes: NDArray[np.int64], height: int, width: int) -> int:
    usual = math.sqrt(height * width) * TEXT_PART
    if len(boxes):
        shorter_sides = (boxes[:, 2:] - boxes[:, :2]).min(axis=1)
        usual = max(SMALLEST_TEXT * usual, min(usual, float(np.median(shorter_sides)) / 3))
    return max(LEAST_TEXT_PX, min(round(usual), height // 3))
