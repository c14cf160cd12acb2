"""A reverse proxy, as one stands before the server: below a prefix, or with nothing behind it."""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.browser.on_a_socket import on_a_socket

# Of one connection and of one length: not the next one's.
OF_A_HOP = {"connection", "content-encoding", "content-length", "host", "transfer-encoding"}
PREFIX = "/vision/"


class Upstream:
    """What the proxy asks; `url` None is a server that is gone, which proxies answer with 502."""

    def __init__(self, url: str | None) -> None:
        self.url = url


@contextmanager
def proxied(upstream: Upstream) -> Iterator[str]:
    """Yields the URL below the prefix."""

    async def forward(request: Request) -> Response:
        if upstream.url is None:
            return Response("<html>Bad Gateway</html>", 502, media_type="text/html")
        kept = {name: value for name, value in request.headers.items() if name not in OF_A_HOP}
        async with httpx.AsyncClient(base_url=upstream.url, timeout=30) as client:
            answer = await client.request(
                request.method,
                "/" + request.path_params["path"],
                params=request.query_params,
                content=await request.body(),
                headers=kept | {"accept-encoding": "identity"},
            )
        headers = {name: value for name, value in answer.headers.items() if name not in OF_A_HOP}
        return Response(answer.content, answer.status_code, headers)

    route = Route(PREFIX + "{path:path}", forward, methods=["GET", "POST"])
    with on_a_socket(Starlette(routes=[route])) as url:
        yield url.rstrip("/") + PREFIX
