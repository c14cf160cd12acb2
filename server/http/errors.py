"""Errors as HTTP answers: the one table of statuses, and the body that an API's clients expect."""

import json
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from typing import Any, Protocol

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
from server.http.middleware import MAX_LOGGED_PATH, RequestRecord, record_of
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

# (status, code, detail) -> the body of an error answer
ErrorBody = Callable[[int, str, str], dict[str, Any]]

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


class Respond(Protocol):
    """Makes the answer to an error, in the form of the API that the path belongs to."""

    def __call__(
        self, scope: Scope, status: int, code: str, detail: str, headers: dict[str, str]
    ) -> Response:
        """The whole answer; the request's record keeps the code."""


def respond_in(bodies: Mapping[str, ErrorBody]) -> Respond:
    """Makes error answers.

    Args:
        bodies: by path prefix, of APIs whose clients expect another body than RFC 9457's.
    """

    def respond(
        scope: Scope, status: int, code: str, detail: str, headers: dict[str, str]
    ) -> Response:
        record = record_of(scope)
        for prefix, body in bodies.items():
            if scope["path"] == prefix or scope["path"].startswith(prefix + "/"):
                record.code = code
                content = json.dumps(body(status, code, detail), ensure_ascii=False)
                return Response(content, status, headers, "application/json")
        return problem_response(record, status, code, detail, headers)

    return respond


def install_error_handlers(app: FastAPI, service: Service, respond: Respond) -> None:
    """Turns every error of a request into an answer.

    Args:
        app: whose errors.
        service: knows when to come again.
        respond: makes the answers.
    """

    @app.exception_handler(ServerError)
    async def handle_server_error(request: Request, error: ServerError) -> Response:
        status = status_of(error)
        if status == 500:
            logger.error("request_failed", code=error.code, exc_info=error)
        headers = {}
        if isinstance(error, Unavailable):
            headers = retry_after(service)
        if isinstance(error, Unauthorized):
            headers["WWW-Authenticate"] = "Bearer"
        detail = INTERNAL_DETAIL if status == 500 else str(error)
        return respond(request.scope, status, error.code, detail, headers)

    @app.exception_handler(HTTPException)
    async def handle_http_exception(request: Request, error: HTTPException) -> Response:
        code = HTTPStatus(error.status_code).name.lower()
        path = request.url.path  # may have 64 KB
        detail = f"{request.method} {path[:MAX_LOGGED_PATH]}: {error.detail}"
        return respond(request.scope, error.status_code, code, detail, dict(error.headers or {}))

    @app.exception_handler(ClientLeft)
    @app.exception_handler(ClientDisconnect)
    async def handle_client_left(_: Request, __: Exception) -> Response:
        return CLIENT_LEFT


def refuse_early(service: Service, respond: Respond) -> Callable[[Scope], Response | None]:
    """Makes what refuses a request that could not be taken now, before anything is done for it."""

    def refuse(scope: Scope) -> Response | None:
        try:
            service.refuse_unless_ready()
            service.model.queue.status().refuse_when_full(service.settings.max_queue_images)
        except Unavailable as error:
            headers = retry_after(service)
            return respond(scope, status_of(error), error.code, str(error), headers)
        return None

    return refuse


def retry_after(service: Service) -> dict[str, str]:
    """The header that says when to come again."""
    return {"Retry-After": str(service.model.queue.status().retry_after_s)}


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
    record: RequestRecord, status: int, code: str, detail: str, headers: dict[str, str]
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


def unexpected_error_response(respond: Respond) -> Callable[[Scope], Response]:
    """Makes the answer to an exception that nobody caught."""
    return lambda scope: respond(scope, 500, "internal_error", INTERNAL_DETAIL, {})
