"""Images to detections: the pipeline that the server and verification share.

image ─prepare_image─┐
bytes ─prepare_encoded─► Prepared ─session─► candidates ─finish─► ImageDetections
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from server.inference.artifact import Artifact, Metadata
from server.inference.session import Session
from server.vision.decode import Require, decode, decode_dct_scaled, unlimited
from server.vision.letterbox import Frame, Letterbox, choose_bucket, full_size, letterbox
from server.vision.nms import Detections, DetectParameters, nms


@dataclass(frozen=True, slots=True)
class Prepared:
    """One image, ready for a batch of its bucket.

    Attributes:
        canvas: (H, W, 3) uint8, RGB, letterboxed.
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
        detections: boxes in original pixels, clipped to the image unless asked otherwise.
        width, height: upright original size in pixels.
        truncated: more candidates pass the confidence threshold than the model hands out.
    """

    detections: Detections
    width: int
    height: int
    truncated: bool


# Where the canvas of a bucket, (height, width), is written, inside of the block.
OpenCanvas = Callable[[tuple[int, int]], AbstractContextManager[NDArray[np.uint8]]]


@contextmanager
def new_canvas(bucket_hw: tuple[int, int]) -> Iterator[NDArray[np.uint8]]:
    """Memory of its own for each canvas."""
    yield np.empty((*bucket_hw, 3), np.uint8)


def prepare_image(
    image: NDArray[np.uint8],
    metadata: Metadata,
    *,
    frame: Frame | None = None,
    open_canvas: OpenCanvas = new_canvas,
) -> Prepared:
    """Letterboxes an image into the smallest bucket that holds it.

    Args:
        image: (H, W, 3) uint8, RGB, upright.
        metadata: of the model that it is prepared for.
        frame: where the image lies in the original, if it was decoded at reduced scale.
        open_canvas: gives the memory; what it raises is raised.
    """
    frame = frame or Frame.whole(image)
    bucket_hw = choose_bucket(frame.original_hw, metadata.buckets)
    full_hw = full_size(metadata.buckets)
    with open_canvas(bucket_hw) as canvas:
        _, placed = letterbox(image, bucket_hw, full_hw=full_hw, frame=frame, canvas=canvas)
    return Prepared(canvas, placed, bucket_hw)


def prepare_encoded(
    data: bytes,
    metadata: Metadata,
    *,
    max_pixels: int,
    dct_scaling: bool,
    require: Require = unlimited,
    open_canvas: OpenCanvas = new_canvas,
) -> tuple[Prepared, dict[str, float]]:
    """Decodes and letterboxes an image file.

    Args:
        data: a whole JPEG, PNG, WebP, BMP or TIFF file.
        metadata: of the model that it is prepared for.
        max_pixels: pixels, >= 1; checked before decoding begins.
        dct_scaling: a large JPEG may be decoded at reduced scale, which is faster and changes the
            pixels that the model sees a little; boxes come in original pixels all the same.
        require: checks the memory; what it raises is raised.
        open_canvas: gives the canvas' memory, as in `prepare_image`.

    Returns:
        The image, ready for a batch; and the seconds of the stages "decode" and "letterbox".

    Raises:
        BadInput: as `server.vision.decode.decode` does.
    """
    started = time.perf_counter()
    frame: Frame | None = None
    if dct_scaling:
        image, frame = decode_dct_scaled(
            data,
            max_pixels=max_pixels,
            full_hw=full_size(metadata.buckets),
            require=require,
        )
    else:
        image = decode(data, max_pixels=max_pixels, require=require)
    decoded = time.perf_counter()
    prepared = prepare_image(image, metadata, frame=frame, open_canvas=open_canvas)
    placed = time.perf_counter()
    return prepared, {"decode": decoded - started, "letterbox": placed - decoded}


def finish(
    candidates: NDArray[np.float32],
    prepared: Prepared,
    metadata: Metadata,
    parameters: DetectParameters,
) -> ImageDetections:
    """Turns one image's (K, 6) float32 candidates into detections in original pixels."""
    anchors = metadata.anchors(prepared.bucket_hw)
    detections, truncated = nms(candidates, parameters, anchors=anchors)
    boxes = prepared.placed.to_original(detections.boxes, clip=parameters.clip)
    height, width = prepared.placed.original_hw
    return ImageDetections(replace(detections, boxes=boxes), width, height, truncated)


def stacked(canvases: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Canvases of one bucket as a batch (B, H, W, 3); one alone is not copied."""
    return canvases[0][None] if len(canvases) == 1 else np.stack(canvases)


class Detector:
    """Detects synchronously, without a server around it.

    Args:
        artifact: describes the model.
        session: the same artifact, loaded.
        max_batch_size: most images of one run, >= 1.
    """

    def __init__(self, artifact: Artifact, session: Session, *, max_batch_size: int = 8) -> None:
        self._metadata = artifact.metadata
        self._session = session
        self._max_batch_size = max_batch_size

    def detect(
        self, images: Sequence[NDArray[np.uint8]], parameters: DetectParameters
    ) -> list[ImageDetections]:
        """Detects in images of any sizes; those of one bucket share batches.

        Args:
            images: (H, W, 3) uint8, RGB, upright.
            parameters: thresholds for all of them.

        Returns:
            One result per image, in their order.

        Raises:
            InferenceFailed: as `Session.run` does.
        """
        prepared = [prepare_image(image, self._metadata) for image in images]
        found: dict[int, ImageDetections] = {}
        for batch in self._batches(prepared):
            candidates = self._session.run(stacked([prepared[i].canvas for i in batch]))
            for i, rows in zip(batch, candidates, strict=True):
                found[i] = finish(rows, prepared[i], self._metadata, parameters)
        return [found[i] for i in range(len(prepared))]

    def _batches(self, prepared: Sequence[Prepared]) -> list[list[int]]:
        """Indices into `prepared`, at most `max_batch_size` of one bucket each."""
        by_bucket: dict[tuple[int, int], list[int]] = {}
        for i, each in enumerate(prepared):
            by_bucket.setdefault(each.bucket_hw, []).append(i)
        size = self._max_batch_size
        return [
            indices[start : start + size]
            for indices in by_bucket.values()
            for start in range(0, len(indices), size)
        ]
