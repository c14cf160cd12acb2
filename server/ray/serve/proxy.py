"""What Ray Serve's own proxies answer, in the form of all our errors.

Set `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` to `server.ray.serve.proxy:middlewares` in the
environment of every Ray node, before `ray start`; `python -m server.ray.serve` does so for a Ray of
its own.
"""

import uuid
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.http.errors import INTERNAL_DETAIL, error_response
from server.http.middleware import REQUEST_ID
from server.http.state import RequestRecord
from server.serving.body_budget import ByteBudget

OWN_PATHS = "/-/"  # of Serve itself, asked by load balancers
DETAILS = {
    404: "no application of Ray Serve has this path",
    408: "the request took longer than request_timeout_s of Ray Serve's http_options",
    429: "as many requests wait as max_queued_requests of the deployment allows",
    503: "no replica can take the request now",
}


def middlewares() -> list[Middleware]:
    """For Serve's setting of the proxies' middlewares."""
    return [Middleware(OurErrors)]


class OurErrors:
    """Turns Serve's plain texts into problem+json, and sees that an answer has one request id.

    Our own errors pass: none of them is plain text.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http" or scope["path"].startswith(OWN_PATHS):
            await self._app(scope, receive, send)
            return
        sent = Headers(scope=scope).get("x-request-id", "")
        request_id = sent if REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex
        id_header = (b"x-request-id", request_id.encode())
        scope = {**scope, "headers": [*_without_id(scope["headers"]), id_header]}
        refused: Message | None = None

        async def send_ours(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start":
                headers = Headers(raw=message["headers"])
                plain = headers.get("content-type", "text/plain").startswith("text/plain")
                if message["status"] >= 400 and plain:
                    refused = message
                    return
                message = {**message, "headers": [*_without_id(message["headers"]), id_header]}
            elif refused is not None:
                if not message.get("more_body", False):
                    await self._answer(scope, refused, request_id, receive, send)
                return
            await send(message)

        await self._app(scope, receive, send_ours)

    async def _answer(
        self, scope: Scope, refused: Message, request_id: str, receive: Receive, send: Send
    ) -> None:
        status = refused["status"]
        headers = {"X-Request-ID": request_id}
        if status in (429, 503):
            headers["Retry-After"] = Headers(raw=refused["headers"]).get("retry-after", "1")
        record = RequestRecord(request_id, ByteBudget(0).reserve())
        scope = {**scope, "state": {**scope.get("state", {}), "record": record}}
        code = "unavailable" if status in (429, 503) else HTTPStatus(status).name.lower()
        detail = DETAILS.get(status, INTERNAL_DETAIL)
        response = error_response(scope, status, code, detail, headers)
        await response(scope, receive, send)


def _without_id(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [each for each in headers if each[0].lower() != b"x-request-id"]
