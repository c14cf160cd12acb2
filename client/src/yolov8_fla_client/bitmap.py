"""Arrays as BMP files: lossless, made by moving bytes only, and read by the server."""

from __future__ import annotations

import struct
from typing import Any

HEADER = struct.Struct("<2sIHHIIiiHHIIiiII")
HEADER_BYTES = 54
MAX_SIDE = 2**15  # 32,768: far over what any server takes, and no field of the header overflows


def bmp_of(pixels: Any) -> bytes:
    """An array as the bytes of a BMP file, 24 bits a pixel, bottom row first.

    Args:
        pixels: (H, W, 3) uint8, RGB, 0..255; or what numpy reads as such, an image of Pillow in
            mode RGB for example. (What OpenCV reads is BGR: turn it by `[..., ::-1]`.)

    Raises:
        TypeError: its samples are not uint8.
        ValueError: it is not of that shape, or has no pixels.
    """
    import numpy as np

    rgb = np.asarray(pixels)
    if rgb.dtype != np.uint8:
        raise TypeError(f"an image's samples must be uint8, 0..255, not {rgb.dtype}")
    if rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ValueError(f"an image must be of shape (height, width, 3), RGB, not {rgb.shape}")
    height, width, _ = rgb.shape
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise ValueError(f"an image must have 1 to {MAX_SIDE} pixels a side, not {rgb.shape[:2]}")
    row_bytes = (width * 3 + 3) // 4 * 4  # rows begin at multiples of 4 bytes
    rows = np.zeros((height, row_bytes), np.uint8)
    rows[:, : width * 3] = rgb[::-1, :, ::-1].reshape(height, width * 3)
    size = HEADER_BYTES + rows.size
    header = HEADER.pack(
        b"BM", size, 0, 0, HEADER_BYTES, 40, width, height, 1, 24, 0, rows.size, 2835, 2835, 0, 0
    )
    return header + rows.tobytes()
