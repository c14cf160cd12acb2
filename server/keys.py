"""Lets a request through when it brings one of the configured keys."""

import hashlib
import hmac
from collections.abc import Awaitable, Callable

from fastapi import Request
from fastapi.security import APIKeyHeader, HTTPBearer

from server.errors import Unauthorized
from server.settings import Settings


def key_schemes() -> list[HTTPBearer | APIKeyHeader]:
    """Where a key may stand, for OpenAPI; `key_check` is what decides."""
    return [HTTPBearer(auto_error=False), APIKeyHeader(name="X-API-Key", auto_error=False)]


def key_check(settings: Settings) -> Callable[[Request], Awaitable[None]]:
    """Makes the dependency that lets a request through when it brings one of the keys."""
    # Digests have one length, so a comparison tells nothing about the key's.
    digests = [_digest(key.get_secret_value().encode()) for key in settings.api_keys]

    async def check(request: Request) -> None:
        if not digests:
            return
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        sent = token.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
        given = _digest(sent.encode("latin-1"))  # as Starlette decodes headers, whatever they are
        # All are compared, also after a match: the time must not say which one it was.
        matches = [hmac.compare_digest(given, digest) for digest in digests]
        if not any(matches):
            raise Unauthorized(
                "this server asks for a key: Authorization: Bearer KEY, or X-API-Key: KEY"
            )

    return check


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
