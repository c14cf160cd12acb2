"""What the app keeps for all requests, and what becomes known of one request on its way."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from fastapi import Request
from starlette.applications import Starlette
from starlette.types import Scope

from server.http.auth import Keys
from server.observability.tracing import Tracing
from server.serving.body_budget import BodyReservation
from server.serving.service import Service


@dataclass(frozen=True, slots=True)
class AppState:
    """What the app keeps for all requests.

    Attributes:
        service: accepts and serves them.
        keys: who may send them.
        reload: what SIGHUP and `POST /model/reload` do.
        tracing: where spans go, if anywhere; to be closed when all is over.
    """

    service: Service
    keys: Keys
    reload: Callable[[], Awaitable[None]]
    tracing: Tracing | None


def state_of(app: Starlette) -> AppState:
    """The state of an app that `server.api.app.create_app` made."""
    state = app.state.server
    assert isinstance(state, AppState)
    return state


async def check_key(request: Request) -> None:
    """As a dependency of a route: what `Keys.check` does."""
    state_of(request.app).keys.check(request.headers)


async def require_key(request: Request) -> None:
    """As a dependency of a route: what `Keys.require` does."""
    state_of(request.app).keys.require(request.headers)


@dataclass(slots=True)
class RequestRecord:
    """What becomes known of one request on its way; kept in the scope's state.

    Attributes:
        body_reservation: of the memory for all bodies; released when the request is over.
        stage_ms: finished stages, for the Server-Timing header.
        code: the error code, when the response is an error.
        images: how many came.
        version: of the model that serves it.
    """

    request_id: str
    body_reservation: BodyReservation
    started: float = field(default_factory=time.perf_counter)
    stage_ms: dict[str, float] = field(default_factory=dict)
    code: str | None = None
    images: int | None = None
    version: str | None = None

    def elapsed_s(self) -> float:
        """Seconds since the request's headers were complete."""
        return time.perf_counter() - self.started


def record_of(scope: Scope) -> RequestRecord:
    """The record of a request."""
    record = scope["state"]["record"]
    assert isinstance(record, RequestRecord)
    return record
