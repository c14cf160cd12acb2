"""`POST /v1/vision/detection`: the form that DeepStack and CodeProject.AI gave to camera software.

Source:
    DeepStack's documentation, "Object Detection" and "Security"; CodeProject.AI Server's API
    reference, "Object Detection".
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import orjson
from fastapi import APIRouter, Request
from fastapi.params import Depends
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from server.api.body import MULTIPART, Form
from server.api.detection import accepted_detection
from server.api.openapi import problem_responses
from server.api.parameters import number, truncate_repr
from server.api.responses import first_found, placed_boxes
from server.errors import BadInput, InvalidParameter, Unauthorized, UnsupportedImage
from server.http.auth import Keys
from server.http.middleware import DETECTION
from server.http.state import state_of
from server.inference.detector import ImageDetections
from server.serving.interface import LoadedModel
from server.serving.pipeline import Found
from server.vision.nms import DetectParameters

PREFIX = "/v1"
DEFAULT_MIN_CONFIDENCE = 0.4
STATUSES = (400, 401, 413, 415, 422, 500, 503, 504)
NAMED = 3  # classes that the message names

Json = dict[str, Any]


class Prediction(BaseModel):
    """One object; pixels of the upright original image."""

    confidence: float = Field(ge=0, le=1)
    label: str
    x_min: int
    y_min: int
    x_max: int
    y_max: int


class Predictions(BaseModel):
    """What was found, best first."""

    model_config = ConfigDict(extra="forbid")

    success: Literal[True]
    message: str
    predictions: list[Prediction]
    count: int
    command: Literal["detect"]
    moduleId: Literal["yolov8-fla"]  # noqa: N815  # the names are CodeProject.AI's
    moduleName: str  # noqa: N815
    executionProvider: str  # noqa: N815
    inferenceMs: int  # noqa: N815
    processMs: int  # noqa: N815
    analysisRoundTripMs: int  # noqa: N815
    duration: float = Field(
        description="Seconds from the end of the request's headers to its response."
    )


class Failure(BaseModel):
    """Why there is no answer."""

    success: Literal[False]
    error: str
    code: int = Field(description="The HTTP status.")


def routes(schemes: Sequence[Depends]) -> APIRouter:
    """The route.

    Args:
        schemes: where a key may stand beside the form, for OpenAPI.
    """
    router = APIRouter(prefix=PREFIX, dependencies=schemes, tags=[DETECTION])
    router.add_api_route(
        "/vision/detection",
        detection,
        methods=["POST"],
        response_model=Predictions,
        responses=problem_responses(*STATUSES, body=Failure, media_type="application/json"),
        openapi_extra=_request(),
    )
    return router


async def detection(request: Request) -> Response:
    """Finds objects in one image."""
    keys = state_of(request.app).keys
    key_in_form = not brings_key(request.headers)
    if not key_in_form:
        keys.check(request.headers)
    async with accepted_detection(request) as accepted:
        _refuse_unless_multipart(request.headers.get("content-type", ""))
        form = await accepted.read_form()
        if key_in_form:
            check_form_key(form, keys)
        parameters = read_min_confidence(form)
        if len(form.images) > 1:
            raise InvalidParameter(f"one image is taken, not {len(form.images)}")

        def render(outcomes: list[Found | BadInput]) -> Response:
            found = first_found(outcomes).detections
            record = accepted.record
            body = predictions(accepted.engine, found, record.stage_ms, record.elapsed_s())
            return Response(orjson.dumps(body), media_type="application/json")

        return await accepted.detect([form.images[0].data], parameters, render)


def brings_key(headers: Mapping[str, str]) -> bool:
    """Whether a header has a key, right or wrong; camera software's Basic authorization is none."""
    return "x-api-key" in headers or headers.get("authorization", "").lower().startswith("bearer ")


def check_form_key(form: Form, keys: Keys) -> None:
    """Lets a form through, or not; one key is enough where the field comes more than once.

    Raises:
        Unauthorized: keys are configured, and the form has no right one.
    """
    sent = [value for name, value in form.fields if name == "api_key"] or [""]
    if not any(keys.allows(value) for value in sent if isinstance(value, str)):
        raise Unauthorized("this server asks for a key: the field api_key, or X-API-Key: KEY")


def read_min_confidence(form: Form) -> DetectParameters:
    """The parameters that a form chooses. Fields that are not known here are left alone.

    Camera software sends fields of its own, which DeepStack does not look at.

    Raises:
        InvalidParameter: `min_confidence` is no number from 0 to 1, or given more than once.
    """
    sent = [value for name, value in form.fields if name == "min_confidence" and value != ""]
    if len(sent) > 1:
        raise InvalidParameter("min_confidence is given more than once")
    conf = number("min_confidence", sent[0]) if sent else DEFAULT_MIN_CONFIDENCE
    if not 0 <= conf <= 1:
        raise InvalidParameter(f"min_confidence is {truncate_repr(conf)}, it must be from 0 to 1")
    return DetectParameters(conf=conf)


def predictions(
    engine: LoadedModel, found: ImageDetections, stage_ms: dict[str, float], elapsed_s: float
) -> Json:
    """The body of `Predictions`.

    Args:
        engine: what answered.
        found: in one image.
        stage_ms: as `server.api.responses.stage_ms` gives it.
        elapsed_s: seconds since the end of the request's headers.
    """
    metadata = engine.artifact.metadata
    detections = found.detections
    labels = [metadata.class_names[class_id] for class_id in detections.class_ids.tolist()]
    boxes = np.rint(placed_boxes(detections)).astype(np.int64).tolist()
    scores = detections.scores.astype(np.float64).round(5).tolist()
    process_ms = sum(stage_ms[stage] for stage in ("decode", "inference", "postprocess"))
    return {
        "success": True,
        "message": _message(labels),
        "predictions": [
            {"confidence": score, "label": label}
            | dict(zip(("x_min", "y_min", "x_max", "y_max"), box, strict=True))
            for score, label, box in zip(scores, labels, boxes, strict=True)
        ],
        "count": len(labels),
        "command": "detect",
        "moduleId": "yolov8-fla",
        "moduleName": metadata.name,
        "executionProvider": engine.provider,
        "inferenceMs": round(stage_ms["inference"]),
        "processMs": round(process_ms),
        "analysisRoundTripMs": round(elapsed_s * 1000),
        "duration": round(elapsed_s, 4),
    }


def _message(labels: Sequence[str]) -> str:
    if not labels:
        return "No objects found"
    return "Found " + ", ".join(labels[:NAMED]) + ("..." if len(labels) > NAMED else "")


def _refuse_unless_multipart(content_type: str) -> None:
    media_type = content_type.split(";")[0].strip().lower()
    if media_type != MULTIPART:
        raise UnsupportedImage(
            f"Content-Type {truncate_repr(media_type)} is not served; send {MULTIPART}"
        )


def _request() -> Json:
    return {
        "requestBody": {
            "required": True,
            "content": {
                MULTIPART: {
                    "schema": {
                        "type": "object",
                        "required": ["image"],
                        "properties": {
                            "image": {
                                "type": "string",
                                "format": "binary",
                                "description": "A JPEG, PNG, WebP, BMP or TIFF file.",
                            },
                            "min_confidence": {
                                "type": "number",
                                "minimum": 0,
                                "maximum": 1,
                                "default": DEFAULT_MIN_CONFIDENCE,
                            },
                            "api_key": {
                                "type": "string",
                                "description": "One of the server's keys, where no header has it.",
                            },
                        },
                    }
                }
            },
        }
    }
