"""A picture with its detections drawn in."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from server.postprocess import Detections

MAX_JPEG_SIDE = 65_500  # the format's own limit, less a little that encoders keep back
# Dark enough for white text; neighbours are far apart also for most colour-blind people.
COLOURS_RGB = (
    (0, 90, 181), (200, 60, 0), (120, 40, 140), (0, 120, 90), (150, 110, 0), (180, 0, 90),
)  # fmt: skip
WHITE_RGB = (255, 255, 255)


def annotate(
    image: NDArray[np.uint8], detections: Detections, class_names: Sequence[str]
) -> NDArray[np.uint8]:
    """Draws boxes with class name and score.

    Args:
        image: (H, W, 3) uint8 RGB; not changed.
        detections: boxes in pixels of this image.
        class_names: by class id.

    Returns:
        (H, W, 3) uint8 RGB; line and text sizes grow with the image.
    """
    drawn = image.copy()
    shorter_side = min(image.shape[:2])
    thickness = max(1, round(shorter_side / 300))
    last_xyxy = (image.shape[1] - 1, image.shape[0] - 1) * 2
    text_scale = max(0.35, shorter_side / 1200)
    labels = []
    # Worst first, so that the best detections' labels stay on top.
    for index in reversed(range(len(detections.scores))):
        class_id = int(detections.class_ids[index])
        colour = COLOURS_RGB[class_id % len(COLOURS_RGB)]
        # The edges of a box that ends with the image lie one pixel outside.
        x1, y1, x2, y2 = (
            min(round(float(edge)), last)
            for edge, last in zip(detections.boxes[index], last_xyxy, strict=True)
        )
        cv2.rectangle(drawn, (x1, y1), (x2, y2), colour, thickness)
        label = f"{class_names[class_id]} {detections.scores[index]:.2f}"
        labels.append((label, (x1, y1), colour))
    for label, corner_xy, colour in labels:  # after all boxes, so that none crosses a label
        _draw_label(drawn, label, corner_xy, colour, text_scale, thickness)
    return drawn


def encode_picture(image: NDArray[np.uint8], *, png: bool) -> tuple[bytes, str]:
    """Encodes (H, W, 3) uint8 RGB.

    Returns:
        The file and its media type: a PNG where asked for, or where a JPEG can't be so large.
    """
    png = png or max(image.shape) > MAX_JPEG_SIDE
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    done, encoded = cv2.imencode(".png" if png else ".jpg", bgr)
    assert done, "OpenCV encodes every uint8 RGB image"
    return encoded.tobytes(), "image/png" if png else "image/jpeg"


def _draw_label(
    image: NDArray[np.uint8],
    label: str,
    corner_xy: tuple[int, int],
    colour: tuple[int, int, int],
    text_scale: float,
    thickness: int,
) -> None:
    font = cv2.FONT_HERSHEY_SIMPLEX
    text_thickness = max(1, thickness // 2)
    (width, height), below = cv2.getTextSize(label, font, text_scale, text_thickness)
    tall = height + below + 2
    # Above the box, or inside it where the box touches the upper edge; never off the picture, as
    # far as it is large enough. (OpenCV fills up to and with the last corner.)
    left = max(0, min(corner_xy[0], image.shape[1] - 1 - width))
    top = corner_xy[1] - tall if corner_xy[1] >= tall else corner_xy[1]
    top = max(0, min(top, image.shape[0] - 1 - tall))
    cv2.rectangle(image, (left, top), (left + width, top + tall), colour, cv2.FILLED)
    baseline = (left, top + height + 1)
    cv2.putText(image, label, baseline, font, text_scale, WHITE_RGB, text_thickness, cv2.LINE_AA)
