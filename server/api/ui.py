"""The pages for people: one to try images in, and the documentation of the interface.

The first is the folder `server/ui`: files as they are, without a build step. The images that it
offers as a first try are those of the folder `samples` beside a model. Swagger UI comes from the
package fastapi-offline, because FastAPI's own page would load it from another host.
"""

import base64
import hashlib
import mimetypes
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import fastapi_offline
from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.params import Depends
from starlette.responses import HTMLResponse, Response, StreamingResponse

from server.errors import NotFound
from server.observability.logs import get_logger

FOLDER = "samples"
MOST = 12
# They stay in memory. Larger images belong to those who drop them.
MAX_BYTES = 4 * 1024 * 1024
MAX_BYTES_IN_ALL = 16 * 1024 * 1024
MEDIA_TYPES = {
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
}

PAGE = Path(__file__).parents[1] / "ui"
SWAGGER_UI = Path(fastapi_offline.__file__).with_name("static")
PIECE_BYTES = 64 * 1024  # so much of an answer waits for a client that reads slowly
ASSETS = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")
# mimetypes asks the system's tables, which differ; browsers run no module of another type.
PAGE_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# What a page's script may ask the browser for: the camera, and nothing else.
PERMISSIONS = "camera=(self), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()"
INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)

logger = get_logger(__name__)


def read_samples(model: Path) -> Mapping[str, bytes]:
    """Reads the images beside a model.

    Args:
        model: an artifact or a folder of them, as the setting `model` names it.

    Returns:
        The first files by name that are JPEG, PNG or WebP by their names, at most `MOST` and within
        the limits of bytes; empty where there is no such folder or it can't be read. A file that
        can't be read, is empty or too large is left out, and the log says so in one line.
    """
    folder = (model if model.is_dir() else model.parent) / FOLDER
    try:
        files = sorted(each for each in folder.iterdir() if media_type(each.name))
    except (FileNotFoundError, NotADirectoryError):
        return {}  # most models have none
    except OSError as error:
        logger.warning("samples_left_out", folder=str(folder), reason=str(error))
        return {}
    samples: dict[str, bytes] = {}
    left_out: dict[str, str] = {}  # reasons by file
    room = MAX_BYTES_IN_ALL
    for file in files:
        if len(samples) == MOST:
            break
        limit = min(MAX_BYTES, room)
        try:
            if not file.is_file():  # opening a pipe would wait for its writer
                continue
            file.name.encode()  # a name that is no text could not be listed
            content = _content(file, limit)
        except (OSError, UnicodeEncodeError, ValueError) as error:
            left_out[repr(file.name)] = str(error)
            continue
        samples[file.name] = content
        room -= len(content)
    if left_out:
        # One line, also for a folder that is a data set of thousands.
        name, reason = next(iter(left_out.items()))
        logger.warning("samples_left_out", files=len(left_out), first=name, reason=reason)
    return samples


def _content(file: Path, limit: int) -> bytes:
    """The bytes of a file. Raises `ValueError` where there are none, or more than `limit`."""
    bytes_there = file.stat().st_size
    if 0 < bytes_there <= limit:  # else it is not even opened
        with file.open("rb") as opened:
            content = opened.read(limit + 1)  # it may have grown
        bytes_there = len(content)
        if 0 < bytes_there <= limit:
            return content
    raise ValueError(f"{bytes_there} bytes, of at most {limit}")


def media_type(name: str) -> str | None:
    """What a file's name says that it is; None where it is no image that browsers show."""
    return MEDIA_TYPES.get(Path(name).suffix.lower())


def routes(title: str, samples: Mapping[str, bytes], guards: Sequence[Depends]) -> APIRouter:
    """The pages and what they load; paths in them are relative, for a proxy with a prefix.

    Args:
        title: of the documentation.
        samples: images that the page offers, by file name.
        guards: stand before the samples, which tell what is looked for here.
    """
    router = APIRouter(include_in_schema=False)
    pages = {file.name: _PageFile(file) for file in PAGE.iterdir() if file.suffix in PAGE_TYPES}
    assets = {name: (SWAGGER_UI / name).read_bytes() for name in ASSETS}

    @router.api_route("/", methods=["GET", "HEAD"])
    async def index(request: Request) -> Response:
        return pages["index.html"].response(request)

    # One route for all files, and so one time series for them.
    @router.api_route("/page/{name}", methods=["GET", "HEAD"])
    async def page_file(request: Request, name: str) -> Response:
        if name not in pages or name == "index.html":
            raise NotFound(f"the page has no file {name[:100]!r}")
        return pages[name].response(request)

    @router.get("/samples", dependencies=guards)
    async def sample_names() -> list[str]:
        return list(samples)

    @router.get("/samples/{name}", dependencies=guards)
    async def sample(name: str) -> Response:
        # Looked up, never opened: what was not read at the start is not there.
        if name not in samples:
            raise NotFound(f"there is no sample {name[:100]!r}")
        content = samples[name]
        headers = {"Content-Length": str(len(content))}
        return StreamingResponse(_pieces(content), headers=headers, media_type=media_type(name))

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

    @router.get("/docs")
    async def documentation() -> HTMLResponse:
        return HTMLResponse(docs, headers={"Content-Security-Policy": docs_policy})

    @router.get("/docs/{name}")
    async def asset(name: str) -> Response:
        if name not in assets:
            raise NotFound(f"the documentation has no file {name[:100]!r}")
        # From memory: each client that reads slowly would keep a file open.
        content = assets[name]
        headers = {"Cache-Control": "max-age=3600", "Content-Length": str(len(content))}
        media_type = mimetypes.guess_type(name)[0]
        return StreamingResponse(_pieces(content), media_type=media_type, headers=headers)

    return router


class _PageFile:
    """A file of the page, in memory."""

    def __init__(self, file: Path) -> None:
        self._content = file.read_bytes()
        self._tag = f'"{hashlib.sha256(self._content).hexdigest()[:32]}"'
        self._media_type = PAGE_TYPES[file.suffix]
        # A browser asks each time whether its copy still counts: after an upgrade, no new page
        # meets an old script.
        self._headers = {"Cache-Control": "no-cache", "ETag": self._tag}
        if file.suffix == ".html":
            self._headers |= {
                "Content-Security-Policy": app_policy(),
                "Permissions-Policy": PERMISSIONS,
            }

    def response(self, request: Request) -> Response:
        """The file; 304 where the client has it."""
        known = [each.strip() for each in request.headers.get("if-none-match", "").split(",")]
        # Proxies that compress mark the tag as weak.
        if "*" in known or self._tag in (each.removeprefix("W/") for each in known):
            return Response(status_code=304, headers=self._headers)
        headers = self._headers | {"Content-Length": str(len(self._content))}
        return StreamingResponse(
            _pieces(self._content), headers=headers, media_type=self._media_type
        )


async def _pieces(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), PIECE_BYTES):
        yield content[start : start + PIECE_BYTES]


def app_policy() -> str:
    """The Content-Security-Policy of the page at `/`: files of this server, and nothing inline.

    Images that a person drops are blobs, and texts never become HTML.
    """
    return "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self' blob:",
            "connect-src 'self'",
            "form-action 'self'",
            "base-uri 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )


def page_policy(html: str) -> str:
    """The Content-Security-Policy of a page: what is written in it, and what this server serves.

    Args:
        html: the page; its inline scripts and styles are allowed by their hashes, so they must
            stand in `<script>` and `<style>` without attributes.
    """
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for element, content in INLINE.findall(html):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        hashes[element].append(f"'sha256-{digest}'")
    return "; ".join(
        (
            "default-src 'none'",
            " ".join(("script-src", "'self'", *hashes["script"])),
            " ".join(("style-src", "'self'", *hashes["style"])),
            "img-src 'self' blob: data:",
            "connect-src 'self'",
            "form-action 'self'",
            "base-uri 'none'",
            "frame-ancestors 'none'",
        )
    )
