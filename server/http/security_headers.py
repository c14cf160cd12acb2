"""What browsers are told about every answer: what its content may do, and who may read it."""

import base64
import hashlib
import re
from collections.abc import Sequence

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.middleware.cors import CORSMiddleware

# A route that answers something else (a page) says so itself.
SECURITY_HEADERS = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
)
# What a page's script may ask the browser for: the camera, and nothing else.
PERMISSIONS = "camera=(self), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()"
INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


def completed(headers: MutableHeaders, request_id: str) -> list[tuple[bytes, bytes]]:
    """An answer's headers with those that every answer has; the ones it sets itself stay."""
    headers["X-Request-ID"] = request_id
    there = {name for name, _ in headers.raw}
    return headers.raw + [each for each in SECURITY_HEADERS if each[0] not in there]


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


def allow_origins(app: FastAPI, origins: Sequence[str]) -> None:
    """Lets pages of other origins call the server (CORS); without origins it does nothing."""
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "X-API-Key", "X-Request-ID", "traceparent"],
            expose_headers=["Retry-After", "Server-Timing", "X-Request-ID"],
        )
