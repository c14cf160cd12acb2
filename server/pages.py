"""The pages for people: one to try images in, and the documentation of the interface.

Swagger UI comes from the package fastapi-offline, because FastAPI's own page would load it from
another host.
"""

import mimetypes
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import fastapi_offline
from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import HTMLResponse, StreamingResponse

from server.security_headers import page_policy

SWAGGER_UI = Path(fastapi_offline.__file__).with_name("static")
PIECE_BYTES = 64 * 1024  # so much of an answer waits for a client that reads slowly
ASSETS = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")


def routes(title: str) -> APIRouter:
    """The pages and what they load; paths in them are relative, for a proxy with a prefix."""
    router = APIRouter(include_in_schema=False)
    page = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    script, style, icon = (f"docs/{name}" for name in ASSETS)
    docs = bytes(
        get_swagger_ui_html(
            openapi_url="openapi.json",
            title=title,
            swagger_js_url=script,
            swagger_css_url=style,
            swagger_favicon_url=icon,
        ).body
    ).decode()
    # Swagger UI styles its elements from its script.
    docs_policy = page_policy(docs).replace("style-src 'self'", "style-src 'self' 'unsafe-inline'")

    @router.get("/")
    async def index() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": page_policy(page)})

    @router.get("/docs")
    async def documentation() -> HTMLResponse:
        return HTMLResponse(docs, headers={"Content-Security-Policy": docs_policy})

    for name in ASSETS:
        router.add_api_route(f"/docs/{name}", _asset(name), methods=["GET"])
    return router


def _asset(name: str) -> Callable[[], Awaitable[StreamingResponse]]:
    # From memory: each client that reads slowly would keep a file open.
    content = (SWAGGER_UI / name).read_bytes()
    headers = {"Cache-Control": "max-age=3600", "Content-Length": str(len(content))}

    async def asset() -> StreamingResponse:
        return StreamingResponse(
            _pieces(content), media_type=mimetypes.guess_type(name)[0], headers=headers
        )

    return asset


async def _pieces(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), PIECE_BYTES):
        yield content[start : start + PIECE_BYTES]
