"""Image bytes to detections: the pipeline that the app, the CLI and verification share."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from server.artifact import Artifact, Metadata
from server.letterbox import Letterbox
from server.postprocess import DetectParameters, Detections
from server.session import Session


@dataclass(frozen=True, slots=True)
class Prepared:
    """One image, ready for a batch of its bucket.

    Attributes:
        canvas: (H, W, 3) uint8 RGB, letterboxed.
        placed: how to get back to original pixels.
        bucket_hw: the canvas' (height, width).
    """

    canvas: NDArray[np.uint8]
    placed: Letterbox
    bucket_hw: tuple[int, int]


@dataclass(frozen=True, slots=True)
class ImageDetections:
    """What was found in one image.

    Attributes:
        detections: boxes in original pixels, clipped to the image.
        width, height: upright original size in pixels.
        truncated: more candidates pass the confidence threshold than the model hands out.
    """

    detections: Detections
    width: int
    height: int
    truncated: bool


def prepare(data: bytes, metadata: Metadata, *, max_pixels: int) -> Prepared:
    """Decodes and letterboxes; raises what `server.image.decode` raises."""
    raise NotImplementedError


def prepare_image(image: NDArray[np.uint8], metadata: Metadata) -> Prepared:
    """Letterboxes an (H, W, 3) RGB image into its bucket."""
    raise NotImplementedError


def finish(
    candidates: NDArray[np.float32],
    prepared: Prepared,
    metadata: Metadata,
    parameters: DetectParameters,
) -> ImageDetections:
    """Turns one image's (K, 6) candidates into detections in original pixels."""
    raise NotImplementedError


class Detector:
    """Detects synchronously, without a server around it."""

    def __init__(self, artifact: Artifact, session: Session) -> None:
        raise NotImplementedError

    def detect(
        self, images: Sequence[NDArray[np.uint8]], parameters: DetectParameters
    ) -> list[ImageDetections]:
        """One result per image, in their order."""
        raise NotImplementedError
