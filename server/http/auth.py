"""The API keys: those of the settings, and those of a file that a reload reads again."""

import hashlib
import hmac
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fastapi.security import APIKeyHeader, HTTPBearer
from pydantic import SecretStr

from server.errors import Forbidden, SettingsInvalid, Unauthorized

MAX_FILE_BYTES = 1024 * 1024


class Keys:
    """Knows the keys by their digests; without any, everybody is let through.

    Args:
        configured: keys of the settings.
        file: more of them, one a line, which LF or CR LF ends; spaces and tabs around it, blank
            lines and those that begin with # don't count.

    Raises:
        SettingsInvalid: the file is not a regular one, can't be read, or holds no key.
    """

    def __init__(self, configured: Sequence[SecretStr], file: Path | None = None) -> None:
        self._configured = [key.get_secret_value() for key in configured]
        self._file = file
        self._digests: list[bytes] = []
        self.reload()

    @property
    def configured(self) -> bool:
        """Whether a request needs a key."""
        return bool(self._digests)

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._digests)

    @property
    def digests(self) -> list[bytes]:
        """What is known of the keys."""
        return self._digests

    def take_over(self, digests: Iterable[bytes]) -> None:
        """Replaces the keys by those of which another process has the digests."""
        self._digests = [*digests]

    def reload(self) -> None:
        """Reads the file again, which may take as long as its disk, or its network, does.

        Raises:
            SettingsInvalid: as at first; the keys of before stay.
        """
        keys = self._configured + (_keys_of(self._file) if self._file else [])
        # Digests have one length, so a comparison tells nothing about the key's.
        self._digests = [_digest(key.encode()) for key in keys]

    def allows(self, text: str) -> bool:
        """Whether a text is one of the keys; always, without any."""
        return self._allow(text.encode("utf-8", "surrogatepass"))

    def _allow(self, sent: bytes) -> bool:
        digest_sent = _digest(sent)
        # All are compared, also after a match: the time must not say which one it was.
        matches = [hmac.compare_digest(digest_sent, digest) for digest in self._digests]
        return any(matches) or not matches

    def check(self, headers: Mapping[str, str]) -> None:
        """Lets a request through, or not.

        Args:
            headers: names without regard to case, values as Latin-1, as Starlette has them.

        Raises:
            Unauthorized: keys are configured, and no right one came.
        """
        scheme, _, token = headers.get("authorization", "").partition(" ")
        sent = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if not self._allow(sent.encode("latin-1")):
            raise Unauthorized(
                "this server asks for a key: Authorization: Bearer KEY, or X-API-Key: KEY"
            )

    def require(self, headers: Mapping[str, str]) -> None:
        """As `check`, for what nobody may do on a server without keys.

        Raises:
            Forbidden: no keys are configured.
            Unauthorized: no right one came.
        """
        if not self.configured:
            raise Forbidden(
                "this needs a key, and the server has none: set api_keys or api_keys_file"
            )
        self.check(headers)


def key_schemes() -> list[HTTPBearer | APIKeyHeader]:
    """Where a key may stand, for OpenAPI; `Keys` is what decides."""
    return [HTTPBearer(auto_error=False), APIKeyHeader(name="X-API-Key", auto_error=False)]


def _open_at_once(path: str, flags: int) -> int:
    """Opens a file; also a pipe into which nobody writes, which would wait for somebody."""
    return os.open(path, flags | os.O_NONBLOCK)


def _keys_of(file: Path) -> list[str]:
    try:
        with open(file, "rb", opener=_open_at_once) as opened:
            if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
                raise SettingsInvalid(f"api_keys_file {file} is not a regular file")
            content = opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise SettingsInvalid(f"api_keys_file {file}: {error.strerror}") from None
    if len(content) > MAX_FILE_BYTES:
        raise SettingsInvalid(f"api_keys_file {file} has over {MAX_FILE_BYTES} bytes")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SettingsInvalid(f"api_keys_file {file} is not UTF-8 text") from None
    # Not splitlines(), which also splits at form feeds, U+0085 and others that a key may hold.
    lines = [line.strip(" \t\r") for line in text.split("\n")]
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise SettingsInvalid(f"api_keys_file {file} holds no key")
    return keys


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
