"""From what was found to the bytes of an answer, in the form that the client would rather have."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from server.api.body import Upload
from server.errors import BadInput
from server.inference.artifact import Artifact
from server.inference.detector import ImageDetections
from server.serving.pipeline import Found
from server.vision.annotate import annotate, encode_image
from server.vision.decode import decode
from server.vision.nms import Detections

JPEG, PNG = "image/jpeg", "image/png"
# What stands for a type, from the exact one to any: the most exact that is named decides.
RANGES = {kind: (kind, "image/*", "*/*") for kind in (JPEG, PNG)}

# Which stages of `server.observability.metrics.STAGES` make up each of the answer's timings.
TIMINGS = {
    "decode": ("decode", "letterbox"),
    "queue": ("queue",),
    "inference": ("inference",),
    "postprocess": ("postprocess",),
}


def prefers_png(accept: str) -> bool:
    """Whether a PNG is wanted more than a JPEG; where both are equal, it is the smaller JPEG.

    Args:
        accept: the header; several are joined by commas. Types with parameters count as without,
            and what can't be read as if it were not there. A client that wants neither gets a
            JPEG: there is nothing else, and an image is what it asked for by `format=image`.

    Source:
        RFC 9110, section 12.5.1.
    """
    qualities: dict[str, float] = {}
    for element in accept.split(","):
        media_range, *parameters = (part.strip().lower() for part in element.split(";"))
        quality = _quality(parameters)
        if quality is not None:
            qualities[media_range] = max(quality, qualities.get(media_range, 0.0))
    png, jpeg = (
        next((qualities[each] for each in RANGES[kind] if each in qualities), 0.0)
        for kind in (PNG, JPEG)
    )
    return png > jpeg


def _quality(parameters: list[str]) -> float | None:
    """0 to 1; None where it is no such number."""
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                quality = float(value)
            except ValueError:
                return None
            return quality if 0 <= quality <= 1 else None
    return 1.0


def stage_ms(outcomes: Sequence[Found | BadInput]) -> dict[str, float]:
    """Milliseconds by timing: the longest that any image spent in it, 0 where none came so far."""
    found = [outcome for outcome in outcomes if isinstance(outcome, Found)]
    return {
        timing: round(
            1000 * max((sum(each.stage_s[s] for s in stages) for each in found), default=0.0), 3
        )
        for timing, stages in TIMINGS.items()
    }


def first_found(outcomes: Sequence[Found | BadInput], first_name: str | None = None) -> Found:
    """The first image that could be read.

    Args:
        outcomes: one per image, at least one.
        first_name: the first image's, if it has one.

    Raises:
        BadInput: none could; the first image's error is the request's, and names the image where
            there are several.
    """
    for outcome in outcomes:
        if isinstance(outcome, Found):
            return outcome
    error = outcomes[0]
    assert isinstance(error, BadInput)
    if len(outcomes) > 1:
        first = ", ".join(filter(None, ("the first", first_name)))
        error.args = (f"none of the {len(outcomes)} images can be read; {first}: {error}",)
    raise error


def placed_boxes(detections: Detections) -> NDArray[np.float32]:
    """The boxes, (N, 4).

    Raises:
        ValueError: one is no number, as of a model that overflowed; JSON would say null.
    """
    if not np.isfinite(detections.boxes).all():
        raise ValueError("the model gave a box that is no number")
    return detections.boxes


def detections_json(
    artifact: Artifact,
    uploads: Sequence[Upload],
    outcomes: Sequence[Found | BadInput],
    timings_ms: dict[str, float],
    box_decimals: int = 2,
) -> bytes:
    """The body of `server.api.schemas.DetectResponse`.

    Args:
        artifact: the model that answered.
        uploads: the images, for their file names.
        outcomes: one per upload, in the same order.
        timings_ms: by stage, with the total.
        box_decimals: of coordinates; scores have five.
    """
    class_names = artifact.metadata.class_names
    body = {
        "model": {"name": artifact.metadata.name, "version": artifact.version},
        "results": [
            {"filename": upload.filename} | _result(outcome, class_names, box_decimals)
            for upload, outcome in zip(uploads, outcomes, strict=True)
        ],
        "timings_ms": timings_ms,
    }
    return orjson.dumps(body)


def annotated_image(
    upload: Upload, found: ImageDetections, class_names: Sequence[str], max_pixels: int, png: bool
) -> tuple[bytes, str]:
    """The image with its detections drawn in, and its media type."""
    # Decoded a second time: cheaper than keeping every image's pixels while it waits.
    image = decode(upload.data, max_pixels=max_pixels)
    return encode_image(annotate(image, found.detections, class_names), png=png)


def _result(
    outcome: Found | BadInput, class_names: Sequence[str], box_decimals: int
) -> dict[str, Any]:
    if isinstance(outcome, BadInput):
        error = {"code": outcome.code, "detail": str(outcome)}
        empty: list[Any] = []
        return {
            "width": None, "height": None, "truncated": False, "error": error, "detections": empty,
        }  # fmt: skip
    found = outcome.detections
    # In float64: a float32 0.912 would be printed as 0.9120000004768372.
    boxes = placed_boxes(found.detections).astype(np.float64).round(box_decimals).tolist()
    scores = found.detections.scores.astype(np.float64).round(5).tolist()
    return {
        "width": found.width,
        "height": found.height,
        "truncated": found.truncated,
        "error": None,
        "detections": [
            {
                "class_id": class_id,
                "class_name": class_names[class_id],
                "score": score,
                "box": {"x1": x1, "y1": y1, "x2": x2, "y2": y2},
            }
            for (x1, y1, x2, y2), score, class_id in zip(
                boxes, scores, found.detections.class_ids.tolist(), strict=True
            )
        ],
    }
