"""Errors as HTTP responses: the one table of statuses, and the body that clients expect."""

import json
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Scope

from server.errors import (
    DeadlineExceeded,
    DeploymentError,
    Forbidden,
    InferenceFailed,
    InvalidParameter,
    MalformedRequest,
    NoImage,
    NotFound,
    ReloadFailed,
    ServerError,
    SessionLost,
    TooLarge,
    Unauthorized,
    Unavailable,
    UndecodableImage,
    UnsupportedImage,
)
from server.http.state import RequestRecord, record_of
from server.observability.logs import get_logger
from server.serving.service import Service
from server.serving.threads import ClientLeft

# One row per kind of fault; the first class that matches wins.
STATUS: tuple[tuple[type[ServerError], int], ...] = (
    (MalformedRequest, 400),
    (NoImage, 400),
    (Unauthorized, 401),
    (Forbidden, 403),
    (NotFound, 404),
    (ReloadFailed, 409),
    (TooLarge, 413),
    (UnsupportedImage, 415),
    (UndecodableImage, 422),
    (InvalidParameter, 422),
    (Unavailable, 503),
    (DeadlineExceeded, 504),
    (InferenceFailed, 500),
)
INTERNAL_DETAIL = "the server failed; its log has the reason under this request id"
CLIENT_LEFT = Response(status_code=499)  # for the log and the metrics: nobody reads it

MAX_SHOWN_PATH = 256  # characters; a path may have 64 KB, and be sent again and again
# By path prefix, the bodies of APIs whose clients expect another one than RFC 9457's.
ERROR_BODIES: dict[str, Callable[[int, str], dict[str, Any]]] = {
    "/v1": lambda status, detail: {"success": False, "error": detail, "code": status},
    "/v2": lambda _, detail: {"error": detail},
}

logger = get_logger(__name__)


class Problem(BaseModel):
    """An error, as `application/problem+json` (RFC 9457)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str


def error_response(
    scope: Scope, status: int, code: str, detail: str, headers: dict[str, str] | None = None
) -> Response:
    """An error in the form of the API that the path belongs to; the record keeps its code."""
    record = record_of(scope)
    for prefix, body in ERROR_BODIES.items():
        if scope["path"] == prefix or scope["path"].startswith(prefix + "/"):
            record.code = code
            content = json.dumps(body(status, detail), ensure_ascii=False)
            return Response(content, status, headers, "application/json")
    return problem_response(record, status, code, detail, headers)


def unavailable_response(scope: Scope, service: Service, error: Unavailable) -> Response:
    """The refusal of a request that can't be served now, with the time after which to retry."""
    headers = {"Retry-After": str(service.model.queue.status().retry_after_s)}
    return error_response(scope, status_of(error), error.code, str(error), headers)


def install_error_handlers(app: FastAPI, service: Service) -> None:
    """Turns every error of a request into a response."""

    @app.exception_handler(ServerError)
    async def handle_server_error(request: Request, error: ServerError) -> Response:
        if isinstance(error, Unavailable):
            return unavailable_response(request.scope, service, error)
        status = status_of(error)
        if status == 500:
            logger.error("request_failed", code=error.code, exc_info=error)
        headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, Unauthorized) else {}
        detail = INTERNAL_DETAIL if status == 500 else str(error)
        return error_response(request.scope, status, error.code, detail, headers)

    @app.exception_handler(HTTPException)
    async def handle_http_exception(request: Request, error: HTTPException) -> Response:
        code = HTTPStatus(error.status_code).name.lower()
        path = request.url.path  # may have 64 KB
        detail = f"{request.method} {path[:MAX_SHOWN_PATH]}: {error.detail}"
        headers = dict(error.headers or {})
        return error_response(request.scope, error.status_code, code, detail, headers)

    @app.exception_handler(ClientLeft)
    @app.exception_handler(ClientDisconnect)
    async def handle_client_left(_: Request, __: Exception) -> Response:
        return CLIENT_LEFT


def status_of(error: ServerError) -> int:
    """The HTTP status of an error; 500 for one that no request should raise."""
    return next((status for kind, status in STATUS if isinstance(error, kind)), 500)


def rejection_reasons(kind: type[ServerError] = ServerError) -> Iterator[str]:
    """The error codes that a request can meet."""
    if issubclass(kind, DeploymentError | SessionLost):
        return
    below = kind.__subclasses__()
    if issubclass(kind, TooLarge):
        yield from kind.CODES
    elif not below:
        yield kind.code
    for each in below:
        yield from rejection_reasons(each)


def problem_response(
    record: RequestRecord,
    status: int,
    code: str,
    detail: str,
    headers: dict[str, str] | None = None,
) -> Response:
    """An error as RFC 9457 describes it."""
    record.code = code
    body = Problem(
        type=f"urn:yolov8-fla:{code}",
        title=code.replace("_", " ").capitalize(),
        status=status,
        detail=detail,
        code=code,
        request_id=record.request_id,
    )
    content = json.dumps(body.model_dump(), ensure_ascii=False)
    return Response(content, status, headers, "application/problem+json")
