"""What surrounds every HTTP request: its id, log line, metrics, trace, and its last resort."""

import re
import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from typing import NamedTuple

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

from server.errors import Unavailable
from server.http.errors import (
    INTERNAL_DETAIL,
    MAX_SHOWN_PATH,
    error_response,
    problem_response,
    unavailable_response,
)
from server.http.state import RequestRecord
from server.observability.logs import get_logger
from server.observability.metrics import Metrics
from server.observability.tracing import RequestSpan, Tracing
from server.serving.body_budget import ByteBudget, announced_bytes
from server.serving.service import Service

REQUEST_ID = re.compile(r"[A-Za-z0-9._\-]{1,128}")
# Asked every few seconds by machines; logged only when they fail.
PROBES = frozenset(
    {
        "/health",
        "/health/live",
        "/health/ready",
        "/metrics",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/{name}/ready",
        "/v2/models/{name}/versions/{version}/ready",
    }
)
# The tag of the routes that take images: their refusals and their times are counted.
DETECTION = "detection"
# Where an answer is out before the body is in, a connection that lives on has to take the rest.
MAX_UNREAD_BODY_BYTES = 1024 * 1024
# What browsers may do with a response. A route that sends something else (a page) says so itself.
SECURITY_HEADERS = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
)

logger = get_logger(__name__)


class RequestScope:
    """Outermost ASGI layer of the app.

    Args:
        app: what responds.
        service: has the metrics, and the memory for bodies. While it ends, each response is its
            connection's last, and says so: a busy client would go on being refused there, until
            the connection is reset.
        tracing: where spans go, if anywhere.
    """

    def __init__(self, app: ASGIApp, *, service: Service, tracing: Tracing | None = None) -> None:
        self._app = app
        self._service = service
        self._metrics = service.metrics
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        record = RequestRecord(_request_id(headers), self._service.body_budget.reserve())
        scope.setdefault("state", {})["record"] = record
        exchange = _Exchange(receive, send, record, self._service)
        method = scope["method"]
        if method == "HEAD":  # as GET; the HTTP server leaves the body out
            scope = {**scope, "method": "GET"}
        span: RequestSpan | None = None
        with ExitStack() as context:
            context.enter_context(bound_contextvars(request_id=record.request_id))
            context.enter_context(self._metrics.inflight_requests.track_inprogress())
            try:
                # In here, so that a fault in what reads the client's headers is answered, too.
                exchange.begin(headers)
                if self._tracing is not None:
                    span = self._tracing.begin(headers)
                    context.enter_context(bound_contextvars(trace_id=span.trace_id))
                await self._app(scope, exchange.receive, exchange.send)
            except Exception:
                logger.exception("unexpected_error")
                if exchange.status is None:
                    response = error_response(scope, 500, "internal_error", INTERNAL_DETAIL)
                    await response(scope, exchange.receive, exchange.send)
            finally:
                record.body_reservation.release()
                route = _route_template(scope)
                status = exchange.status or 499  # 499: the client left, or was cut off, unanswered
                self._account(scope, method, record, route, status)
                if span is not None:
                    span.end(method, route, status, record.stage_ms, {
                        "detector.images": record.images,
                        "detector.model_version": record.version,
                        "error.type": record.code,
                    })  # fmt: skip

    def _account(
        self, scope: Scope, method: str, record: RequestRecord, route: str, status: int
    ) -> None:
        metrics = self._metrics
        metrics.requests.labels(route, str(status)).inc()
        if DETECTION in getattr(scope.get("route"), "tags", ()) and method == "POST":
            metrics.request_seconds.labels(str(status)).observe(record.elapsed_s())
            if record.code:
                metrics.rejected.labels(record.code).inc()
        if route in PROBES and status == 200:
            return
        client = scope.get("client")
        known = {"code": record.code, "images": record.images, **_rounded(record.stage_ms)}
        logger.info(
            "request",
            method=method,
            path=scope["path"][:MAX_SHOWN_PATH],
            status=status,
            duration_ms=round(record.elapsed_s() * 1000, 3),
            client=client[0] if client else None,
            **{name: value for name, value in known.items() if value is not None},
        )


class EarlyRefusal:
    """Innermost ASGI layer: refuses a detection request before it is routed and its body is read.

    Under overload that is the answer to most requests, and costs half this way.

    Args:
        app: what answers all others.
        service: knows whether there is a reason to refuse.
        routes: pattern of a detection route's whole path, and the route's template.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        service: Service,
        routes: Mapping[re.Pattern[str], str],
    ) -> None:
        self._app = app
        self._service = service
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuses one request, or lets it pass."""
        app: ASGIApp = self._app
        template = self._template(scope)
        if template:
            try:
                self._service.refuse_unless_accepting()
            except Unavailable as error:
                scope["route"] = _DetectionRoute(template, (DETECTION,))
                app = unavailable_response(scope, self._service, error)
        await app(scope, receive, send)

    def _template(self, scope: Scope) -> str | None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return None
        path = scope["path"]
        return next((route for form, route in self._routes.items() if form.fullmatch(path)), None)


class _DetectionRoute(NamedTuple):
    """What the route would have been, for log and metrics."""

    path: str
    tags: tuple[str, ...]


class _Exchange:
    """One request's messages: remembers what matters of them, and completes the answer's head."""

    def __init__(
        self,
        receive: Receive,
        send: Send,
        record: RequestRecord,
        service: Service,
    ) -> None:
        self.status: int | None = None
        self._receive = receive
        self._send = send
        self._record = record
        self._service = service
        self._expects_continue = False
        self._unread_body_bytes = 0

    def begin(self, headers: Headers) -> None:
        """Takes over what the request says of its body."""
        self._expects_continue = "expect" in headers
        self._unread_body_bytes = announced_bytes(headers)

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._expects_continue = False
            self._unread_body_bytes -= len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(raw=list(message["headers"]))
            stages = self._record.stage_ms | {"total": self._record.elapsed_s() * 1000}
            headers["Server-Timing"] = ", ".join(
                f"{stage};dur={milliseconds:.3f}" for stage, milliseconds in stages.items()
            )
            much_to_come = self._unread_body_bytes > MAX_UNREAD_BODY_BYTES or self._expects_continue
            if much_to_come or self._service.ending:
                headers["Connection"] = "close"
            message["headers"] = _completed(headers, self._record.request_id)
        await self._send(message)


def connection_refusal(
    metrics: Metrics, client: str | None, status: int, code: str, detail: str
) -> Response:
    """The response to what never became a request; as `server.http.protocol.Refuse`.

    Args:
        metrics: where it is counted, and for 503 also as rejected.
        client: its address.
        status: of HTTP.
        code: of the error.
        detail: in words.
    """
    record = RequestRecord(uuid.uuid4().hex, ByteBudget(0).reserve())
    headers = {"Retry-After": "1"} if status == 503 else {}
    response = problem_response(record, status, code, detail, headers)
    response.raw_headers = _completed(response.headers, record.request_id)
    metrics.requests.labels("unmatched", str(status)).inc()
    if status == 503:
        metrics.rejected.labels(code).inc()
    logger.info("refused", request_id=record.request_id, status=status, code=code, client=client)
    return response


def _completed(headers: MutableHeaders, request_id: str) -> list[tuple[bytes, bytes]]:
    """A response's headers with those that every response has; the ones it sets itself stay."""
    headers["X-Request-ID"] = request_id
    there = {name for name, _ in headers.raw}
    return headers.raw + [each for each in SECURITY_HEADERS if each[0] not in there]


def _rounded(stage_ms: dict[str, float]) -> dict[str, float]:
    return {f"{stage}_ms": round(value, 3) for stage, value in stage_ms.items()}


def _route_template(scope: Scope) -> str:
    """Of the route that took a request; never the path, or a scanner would make time series."""
    if "route" in scope:
        return str(scope["route"].path)
    # Starlette's own routes, as those of /openapi.json, leave only their endpoint.
    endpoint = scope.get("endpoint")
    for route in scope["app"].routes if endpoint else ():
        if getattr(route, "endpoint", None) is endpoint:
            return str(route.path)
    return "unmatched"


def _request_id(headers: Headers) -> str:
    """The client's id where it is harmless in a header and a log line, or a new one."""
    sent = headers.get("x-request-id", "")
    return sent if REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex
