"""The input shapes of an artifact."""

import math

from export.errors import ModelUnsupported

ASPECT_RATIOS = ((3, 4), (9, 16))  # of common images, short to long side


def buckets(imgsz: int, stride: int) -> tuple[tuple[int, int], ...]:
    """The square and the padded rectangles of common aspect ratios, both ways round.

    Args:
        imgsz: the longer side in pixels.
        stride: both sides are multiples of it.

    Returns:
        (height, width) each, the square first.

    Raises:
        ModelUnsupported: when the size is not a positive multiple of the stride.
    """
    if imgsz < stride or imgsz % stride:
        below = max(imgsz // stride, 1) * stride
        raise ModelUnsupported(
            f"--imgsz {imgsz} is not a positive multiple of the stride, {stride}: take {below} or "
            f"{below + stride}"
        )
    shorts = [math.ceil(imgsz * short / long / stride) * stride for short, long in ASPECT_RATIOS]
    shapes = [(imgsz, imgsz)]
    shapes += [(short, imgsz) for short in shorts] + [(imgsz, short) for short in shorts]
    return tuple(dict.fromkeys(shapes))
