"""The OpenAPI document, and what it says of `POST /detect`, whose body FastAPI does not read.

`GET /openapi.json` is written once, beside the requests that are being answered.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import orjson
from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import StreamingResponse

from server.http.errors import Problem
from server.vision.nms import DetectParameters

DEFAULT = DetectParameters()
PROBLEMS = {
    400: "Malformed multipart, JSON or base64; or no image.",
    401: "Keys are configured and none, or a wrong one, came.",
    403: "The server has no keys configured, and this needs one.",
    404: "No model of that name or version.",
    409: "The model files as they are now can't be served; the model of before goes on.",
    413: "Body bytes, images or pixels over a limit, which the detail names.",
    415: "Not an image format, content type or content encoding that is served.",
    422: "Truncated or corrupt image; or a parameter that is unknown or out of range.",
    500: "Inference failed.",
    503: "Queue full, not ready, or draining; Retry-After says when to come again.",
    504: "The request's deadline passed; its images were not inferred.",
}
PARAMETERS: dict[str, tuple[str, dict[str, Any]]] = {
    "conf": (
        "Confidence threshold; only higher scores are answered.",
        {"type": "number", "minimum": 0, "maximum": 1, "default": DEFAULT.conf},
    ),
    "iou": (
        "IoU threshold of the non-maximum suppression.",
        {"type": "number", "minimum": 0, "maximum": 1, "default": DEFAULT.iou},
    ),
    "max_det": (
        "Detections per image at most.",
        {"type": "integer", "minimum": 1, "default": DEFAULT.max_det},
    ),
    "classes": (
        "Only these classes, as ids or names; comma separated or repeated.",
        {"type": "array", "items": {"oneOf": [{"type": "integer"}, {"type": "string"}]}},
    ),
    "agnostic_nms": (
        "Suppress overlaps across classes, too.",
        {"type": "boolean", "default": DEFAULT.agnostic_nms},
    ),
    "clip": (
        "Boxes end where the image does. With false they are whole, in four decimals instead of "
        "two: as suppression, which comes before, sees them.",
        {"type": "boolean", "default": DEFAULT.clip},
    ),
    "format": (
        "`json`, or `image` for the one image with its detections drawn in: a JPEG, or a PNG "
        "where Accept prefers image/png.",
        {"type": "string", "enum": ["json", "image"], "default": "json"},
    ),
}

CLASSES_IN_A_FORM = "Only these classes, as ids or names; comma separated."
# A grey image of one pixel, as PNG.
ONE_PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVQIHWMoKioCAAKwAVfn2/w/AAAAAElFTkSuQmCC"
)

PIECE_BYTES = 64 * 1024  # so much of an answer waits for a client that reads slowly


def problem_responses(
    *statuses: int,
    body: type[BaseModel] = Problem,
    media_type: str = "application/problem+json",
) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's description of error answers."""
    schema = body.model_json_schema()
    return {
        status: {
            "description": PROBLEMS[status],
            "content": {media_type: {"schema": schema}},
        }
        | ({"headers": {"Retry-After": _RETRY_AFTER}} if status == 503 else {})
        for status in statuses
    }


def image_response() -> dict[int | str, dict[str, Any]]:
    """The other forms of a good answer, for `format=image`."""
    image = {"schema": {"type": "string", "format": "binary"}}
    return {200: {"content": {"image/jpeg": image, "image/png": image}}}


def detect_request() -> dict[str, Any]:
    """The three forms of the body, and the parameters of the query."""
    # Without defaults: a form that is filled in with them would give each parameter twice.
    fields = {
        name: {key: value for key, value in schema.items() if key != "default"}
        | {"description": text}
        for name, (text, schema) in PARAMETERS.items()
    }
    binary = {"schema": {"type": "string", "format": "binary"}}
    images_base64 = {
        "type": "array",
        "minItems": 1,
        "items": {"type": "string", "contentEncoding": "base64"},
    }
    return {
        "parameters": [
            {"name": name, "in": "query", "required": False, "description": text, "schema": schema}
            for name, (text, schema) in PARAMETERS.items()
        ],
        "requestBody": {
            "required": True,
            "description": "JPEG, PNG, WebP, BMP or TIFF images. A parameter is given once, in "
            "the query or as a form or JSON field.",
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "description": "One or more file parts, of any field name.",
                        "properties": {
                            "image": {
                                "type": "array",
                                "items": {"type": "string", "format": "binary"},
                            }
                        }
                        | fields
                        | {"classes": {"type": "string", "description": CLASSES_IN_A_FORM}},
                    }
                },
                "image/*": binary,
                "application/octet-stream": binary,
                "application/json": {
                    "schema": {
                        "type": "object",
                        "required": ["images"],
                        "properties": {"images": images_base64} | fields,
                        "additionalProperties": False,
                    },
                    "example": {"images": [ONE_PIXEL]},
                },
            },
        },
    }


_RETRY_AFTER = {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}


def routes(
    describe: Callable[[], dict[str, Any]],
    on_thread: Callable[[Callable[[], bytes]], Awaitable[bytes]],
) -> APIRouter:
    """The route. FastAPI's own describes on the event loop: 0.1 s in which nothing is answered.

    Args:
        describe: makes the document; called when it is first asked for, and once.
        on_thread: runs that on a thread.
    """
    router = APIRouter(include_in_schema=False)
    writing: asyncio.Future[bytes] | None = None

    async def document() -> StreamingResponse:
        nonlocal writing
        if writing is None or (writing.done() and not _came(writing)):
            writing = asyncio.ensure_future(on_thread(lambda: orjson.dumps(describe())))
        # A client that leaves must not end what others wait for, too.
        content = await asyncio.shield(writing)
        headers = {"Content-Length": str(len(content))}
        return StreamingResponse(_pieces(content), media_type="application/json", headers=headers)

    router.add_api_route("/openapi.json", document, methods=["GET", "HEAD"])
    return router


def _came(writing: asyncio.Future[bytes]) -> bool:
    return not writing.cancelled() and writing.exception() is None


async def _pieces(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), PIECE_BYTES):
        yield content[start : start + PIECE_BYTES]
