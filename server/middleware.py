"""What surrounds every HTTP request: its id, its log lines, its metrics, its last resort."""

import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

from server.logs import get_logger
from server.metrics import Metrics

REQUEST_ID = re.compile(r"[A-Za-z0-9._\-]{1,128}")
# Asked every few seconds by machines; logged only when they fail.
PROBES = frozenset({"/health", "/health/live", "/health/ready", "/metrics"})

logger = get_logger(__name__)


@dataclass(slots=True)
class RequestRecord:
    """What becomes known of one request on its way; kept in the scope's state.

    Attributes:
        stage_ms: finished stages, for the Server-Timing header.
        code: the error code, when the answer is an error.
        images: how many came.
    """

    request_id: str
    started: float = field(default_factory=time.perf_counter)
    stage_ms: dict[str, float] = field(default_factory=dict)
    code: str | None = None
    images: int | None = None

    def elapsed_s(self) -> float:
        """Seconds since the request's first byte."""
        return time.perf_counter() - self.started


def record_of(scope: Scope) -> RequestRecord:
    """The record of the request that is being answered."""
    record = scope["state"]["record"]
    assert isinstance(record, RequestRecord)
    return record


class RequestScope:
    """Outermost ASGI layer of the app.

    Args:
        app: what answers.
        metrics: where requests are counted.
        unexpected: makes the answer to an exception that nobody caught.
    """

    def __init__(
        self, app: ASGIApp, metrics: Metrics, unexpected: Callable[[RequestRecord], Response]
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._unexpected = unexpected

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = RequestRecord(_request_id(Headers(scope=scope)))
        scope.setdefault("state", {})["record"] = record
        answer = _Answer(send, record)
        with (
            bound_contextvars(request_id=record.request_id),
            self._metrics.inflight_requests.track_inprogress(),
        ):
            try:
                await self._app(scope, receive, answer.send)
            except Exception:
                logger.exception("unexpected_error")
                if answer.status is None:
                    await self._unexpected(record)(scope, receive, answer.send)
            finally:
                self._account(scope, record, answer.status)

    def _account(self, scope: Scope, record: RequestRecord, status: int | None) -> None:
        route = _route_template(scope)
        shown = str(status or 499)  # 499: the client left, or was cut off, without an answer
        self._metrics.requests.labels(route, shown).inc()
        if route == "/detect":
            self._metrics.request_seconds.observe(record.elapsed_s())
        log = logger.debug if route in PROBES and status == 200 else logger.info
        client = scope.get("client")
        log(
            "request",
            method=scope["method"],
            path=scope["path"],
            status=status or 499,
            duration_ms=round(record.elapsed_s() * 1000, 3),
            client=client[0] if client else None,
            **{k: v for k, v in (("code", record.code), ("images", record.images)) if v},
        )


class _Answer:
    """Remembers the status of one answer, and adds the headers that every answer has."""

    def __init__(self, send: Send, record: RequestRecord) -> None:
        self.status: int | None = None
        self._send = send
        self._record = record

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self._record.request_id
            stages = self._record.stage_ms | {"total": self._record.elapsed_s() * 1000}
            headers["Server-Timing"] = ", ".join(
                f"{stage};dur={milliseconds:.3f}" for stage, milliseconds in stages.items()
            )
        await self._send(message)


def _route_template(scope: Scope) -> str:
    """Of the route that took a request; never the path, or a scanner would make time series."""
    if "route" in scope:
        return str(scope["route"].path)
    # Starlette's own routes, as those of /docs and /openapi.json, leave only their endpoint.
    endpoint = scope.get("endpoint")
    for route in scope["app"].routes if endpoint else ():
        if getattr(route, "endpoint", None) is endpoint:
            return str(route.path)
    return "unmatched"


def _request_id(headers: Headers) -> str:
    """The client's id where it is harmless in a header and a log line, or a new one."""
    sent = headers.get("x-request-id", "")
    return sent if REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex
