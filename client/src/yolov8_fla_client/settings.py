"""What both clients are made from, and how their requests look on the wire."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypedDict

import httpx

from yolov8_fla_client.exchange import NoResponse, Response, Send
from yolov8_fla_client.operations import Ask, Limits
from yolov8_fla_client.retry import LONGEST_S, Retry, asking, asking_once

DISTRIBUTION = "yolov8-fla-client"
MAX_ANSWER_BYTES = 256 * 2**20  # unpacked; over what any image or its detections take


def this_version() -> str:
    """The installed package's; "unknown" in a checkout that was not installed."""
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "unknown"


class HttpArguments(TypedDict):
    """What `httpx.Client` and `httpx.AsyncClient` are called with alike."""

    base_url: httpx.URL
    headers: Mapping[str, str]
    follow_redirects: bool
    limits: httpx.Limits


@dataclass(frozen=True)
class Connection:
    """One client's choices.

    Attributes:
        http: for the client of httpx.
        retry: when requests are sent again.
        timeout_s: seconds without any progress after which an attempt is given up.
        limits: what is known of the server's.
    """

    http: HttpArguments
    retry: Retry
    timeout_s: float
    limits: Limits

    @classmethod
    def to(cls, url: str, api_key: str | None, timeout_s: float, retry: Retry) -> Connection:
        """Checks what a client is made with.

        Raises:
            ValueError: `url` is no address of HTTP, the key can't be sent, or `timeout_s` is not
                in 0..`LONGEST_S`.
        """
        try:
            address = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise ValueError(f"{url!r} is no address: {error}") from None
        if address.scheme not in ("http", "https") or not address.host:
            raise ValueError(f"{url!r} is no address of HTTP, such as http://127.0.0.1:8000")
        if not 0 < timeout_s <= LONGEST_S:
            raise ValueError(f"timeout_s must be over 0, at most {LONGEST_S:.0f}, not {timeout_s}")
        headers = {"User-Agent": f"{DISTRIBUTION}/{this_version()}"}
        if api_key is not None:
            # httpx would tell the whole key in its own error.
            if not (api_key.isascii() and api_key.isprintable() and api_key.strip()):
                raise ValueError("api_key must be printable ASCII text")
            headers["Authorization"] = f"Bearer {api_key.strip()}"
        # No limit of connections but that of the streams' requests in flight.
        pool = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=4)
        arguments = HttpArguments(
            base_url=address, headers=headers, follow_redirects=False, limits=pool
        )
        return cls(arguments, retry, timeout_s, Limits())

    def asker(self, *, once: bool = False) -> Ask:
        """What operations ask with; `once` hands on whatever comes."""
        if once:
            return lambda request: asking_once(request, self.timeout_s)
        return lambda request: asking(request, self.retry, self.timeout_s)


def http_arguments(send: Send) -> dict[str, Any]:
    """What httpx' `build_request` is called with."""
    request = send.request
    arguments: dict[str, Any] = {
        "method": request.method,
        "url": request.path,
        "params": list(request.query),
        "headers": request.headers,
        "timeout": send.timeout_s,
    }
    if request.files:
        binary = "application/octet-stream"
        arguments["files"] = [
            ("image", (str(i), content, binary)) for i, content in enumerate(request.files)
        ]
    elif request.content is not None:
        arguments["content"] = request.content
    return arguments


def response_of(response: httpx.Response, body: bytes) -> Response:
    """What came, as a value."""
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Response(response.status_code, headers, body)


def no_response(error: httpx.HTTPError, address: httpx.URL) -> NoResponse:
    """Why nothing came; the address without a password in it."""
    where = f"{address.scheme}://{address.netloc.decode()}"
    if isinstance(error, httpx.TimeoutException):
        kind = "no connection" if isinstance(error, httpx.ConnectTimeout) else "no progress"
        return NoResponse(f"{where}: {kind} within the time given")
    # What is wrong with our own request, or the address, is wrong the next time, too.
    again = isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError | httpx.ProxyError)
    # httpx has no text for some, as of a connection that is reset while it is read.
    reason = str(error) or {"ReadError": "the connection was reset"}.get(
        type(error).__name__, type(error).__name__
    )
    return NoResponse(f"{where}: {reason}", again)


def given_up(body: bytearray, send: Send) -> NoResponse | None:
    """Why no more of an answer is read; None to go on."""
    if len(body) > MAX_ANSWER_BYTES:
        return NoResponse(f"the answer has over {MAX_ANSWER_BYTES} bytes", again=False)
    # An answer that comes drop by drop is never without progress.
    if time.monotonic() > send.ends_s:
        return NoResponse("the answer was not complete within the time given")
    return None
