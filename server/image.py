"""From the bytes of an image file to upright RGB pixels, limits first."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What an image file says of itself before any pixel is decoded.

    Attributes:
        format: "JPEG", "PNG", "WEBP", "BMP" or "TIFF".
        width, height: pixels as stored, before EXIF orientation; >= 1.
    """

    format: str
    width: int
    height: int


def read_header(data: bytes) -> ImageHeader:
    """Reads format and size without decoding pixels."""
    raise NotImplementedError


def decode(data: bytes, *, max_pixels: int) -> NDArray[np.uint8]:
    """Decodes the first frame to (H, W, 3) uint8 RGB, upright."""
    raise NotImplementedError
