"""From the bytes of an answer to results, or to the error that it tells."""

import json
import math
from collections.abc import Mapping
from dataclasses import fields
from http import HTTPStatus
from typing import Any

from yolov8_fla_client.errors import (
    ImageRefused,
    Refused,
    ServerFailed,
    Unauthorized,
    Unavailable,
    UnexpectedResponse,
)
from yolov8_fla_client.exchange import Response
from yolov8_fla_client.results import (
    Box,
    Detection,
    Health,
    ImageError,
    ImageResult,
    ModelDescription,
    ModelName,
    Timings,
)

# The request may be taken later: by the server, or by what a proxy finds behind it.
AGAIN = frozenset({429, 502, 503, 504})
# Faults of one image, not of the request around it.
IMAGE_CODES = frozenset(
    {"unsupported_image", "undecodable_image", "too_many_pixels", "too_much_memory"}
)
SHOWN_CHARACTERS = 200
# What a body or a field of it raises that is not this server's: too deep, or a number too large.
STRANGE = (KeyError, TypeError, ValueError, OverflowError, RecursionError)


def read_results(response: Response) -> list[ImageResult]:
    """The results of `POST /detect`, in their order; file names are those that were sent.

    Raises:
        UnexpectedResponse: it is no such answer.
    """
    body = _json_object(response)
    try:
        model = ModelName(str(body["model"]["name"]), str(body["model"]["version"]))
        values = body["timings_ms"]
        timings = Timings(**{each.name: _number(values[each.name]) for each in fields(Timings)})
        return [_image_result(each, model, timings) for each in body["results"]]
    except STRANGE as error:
        raise _not_understood(response, error) from error


def read_health(response: Response) -> Health:
    """The answer of `GET /health`, of 200 and 503 alike."""
    body = _json_object(response)
    try:
        return Health(**{each.name: body[each.name] for each in fields(Health)})
    except KeyError as error:
        raise _not_understood(response, error) from error


def read_model(response: Response) -> ModelDescription:
    """The answer of `GET /model`."""
    body = _json_object(response)
    try:
        model = ModelDescription(str(body["version"]), dict(body["metadata"]))
        assert_named(model)
    except STRANGE as error:
        raise _not_understood(response, error) from error
    return model


def assert_named(model: ModelDescription) -> None:
    """Raises `KeyError` where the metadata lacks what the client itself reads."""
    _ = model.name, model.class_names


def error_of(
    response: Response, retry_after_s: float | None = None, attempts: str = ""
) -> Exception:
    """The error that an answer other than a 2xx tells.

    Args:
        response: of any server or proxy.
        retry_after_s: as it asks for.
        attempts: goes before the message's end, such as "asked 5 times".
    """
    if not 400 <= response.status < 600:
        where = response.headers.get("location")
        leads = f", which leads to {where}: use that address" if where else ""
        return UnexpectedResponse(f"the server answered {response.status}{leads}")
    problem = _problem(response)
    code = str(problem.get("code") or _words(response.status))
    detail = str(problem.get("detail") or _text(response))
    request_id = problem.get("request_id") or response.headers.get("x-request-id")
    tail = f"; {attempts}" if attempts else ""
    shown_id = f" (request {request_id})" if request_id else ""
    return _kind(response.status, code)(
        f"{response.status} {code}: {detail}{tail}{shown_id}",
        status=response.status,
        code=code,
        detail=detail,
        request_id=request_id,
        retry_after_s=retry_after_s,
    )


def _kind(status: int, code: str) -> type[Refused]:
    if status in (401, 403):
        return Unauthorized
    if status in AGAIN:
        return Unavailable
    if status >= 500:
        return ServerFailed
    return ImageRefused if code in IMAGE_CODES or status == 413 else Refused


def _image_result(value: Mapping[str, Any], model: ModelName, timings: Timings) -> ImageResult:
    error = value["error"]
    return ImageResult(
        filename=value["filename"],
        width=_side(value["width"], error),
        height=_side(value["height"], error),
        truncated=bool(value["truncated"]),
        error=None if error is None else ImageError(str(error["code"]), str(error["detail"])),
        detections=tuple(_detection(each) for each in value["detections"]),
        model=model,
        timings_ms=timings,
    )


def _detection(value: Mapping[str, Any]) -> Detection:
    box = value["box"]
    return Detection(
        class_id=int(value["class_id"]),
        class_name=str(value["class_name"]),
        score=_number(value["score"]),
        box=Box(*(_number(box[corner]) for corner in ("x1", "y1", "x2", "y2"))),
    )


def _side(value: object, error: object) -> int | None:
    """An image's width or height; only one with an error may have none."""
    if value is None and error is not None:
        return None
    if type(value) is not int or value < 1:
        raise ValueError(f"an image of {value!r} pixels")
    return value


def _number(value: Any) -> float:
    """Finite: JSON has no other, and what is written from it would be none."""
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is no number of JSON")
    return number


def _json_object(response: Response) -> dict[str, Any]:
    try:
        body = json.loads(response.body)
    except (ValueError, RecursionError) as error:  # also what is not UTF-8
        raise _not_understood(response, error) from error
    if not isinstance(body, dict):
        raise UnexpectedResponse(f"the server answered {response.status} with no JSON object")
    return body


def _problem(response: Response) -> dict[str, Any]:
    try:
        body = json.loads(response.body)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _not_understood(response: Response, error: Exception) -> UnexpectedResponse:
    return UnexpectedResponse(
        f"the server answered {response.status} with what is not this server's "
        f"({type(error).__name__}: {error}): {_text(response)!r}"
    )


def _words(status: int) -> str:
    try:
        return HTTPStatus(status).name.lower()
    except ValueError:
        return f"http_{status}"


def _text(response: Response) -> str:
    text = " ".join(response.body.decode(errors="replace").split())
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."
