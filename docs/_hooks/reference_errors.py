"""The error codes as Markdown tables: statuses and causes from the code, advice from here."""

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from server.errors import DeploymentError, ServerError, SessionLost, TooLarge, Unavailable
from server.http.errors import status_of
from server.observability.metrics import TOO_MANY_CONNECTIONS

SERVER = Path(__file__).resolve().parents[2] / "server"
INTERNAL = "internal_error"
FROM_THE_QUEUE = "yes: when the queue should be empty, 1 to 60 s"
ONE_SECOND = "yes: 1 s"

# Causes of codes that are no class of server/errors.py with a sentence of its own.
WHEN: Mapping[str, str] = {
    "bad_http": "The HTTP itself is not valid: request line, headers, framing, URL.",
    "body_too_large": "The body has over `max_body_bytes`, or could never fit "
    "`max_inflight_body_bytes`.",
    "headers_too_large": "Request line and headers have over 64 KiB or 256 lines.",
    "http_version_not_supported": "Neither HTTP/1.0 nor HTTP/1.1.",
    INTERNAL: "Something failed that nobody foresaw.",
    "method_not_allowed": "The route has other methods; `Allow` names them.",
    "not_found": "No such route; or no model of the name or version that was requested.",
    "not_implemented": "`CONNECT`, or a `Transfer-Encoding` other than chunked.",
    "request_timeout": "The request's headers took longer than `header_timeout_s`.",
    "too_large": "Over a limit that has no code of its own.",
    "too_many_images": "The request has more images than `max_images_per_request`.",
    "too_many_pixels": "The image has more pixels than `max_image_pixels`, by its header.",
    "too_many_request_pixels": "The request's images have more pixels than `max_request_pixels` "
    "together, by their headers.",
    "too_much_memory": "Decoding the image takes more memory than the server has for it at all.",
    TOO_MANY_CONNECTIONS: "As many connections are open as the server takes.",
    "unsupported_image": "The bytes are not a JPEG, PNG, WebP, BMP or TIFF image, or one of a "
    "coding not served; or the body's `Content-Type` or `Content-Encoding` is not.",
}
ADVICE: Mapping[str, str] = {
    "bad_http": "Repair the client or the proxy between; the detail states what the parser met.",
    "body_too_large": "Send fewer or smaller images, or raise the limit that the detail names.",
    "deadline_exceeded": "Send fewer images at once or retry; the server is slow or loaded.",
    "draining": "Retry: another replica, or this one after its restart, will serve it.",
    "headers_too_large": "Send fewer headers or cookies; images belong into the body.",
    "http_version_not_supported": "Speak HTTP/1.1; HTTP/2 ends at a proxy.",
    "inference_failed": "Retry once; then look for the request id in the server's log.",
    INTERNAL: "Look for the request id in the server's log, and report it.",
    "invalid_parameter": "Repair the parameter; the detail has its value and its range.",
    "keys_not_configured": "Give the server keys; until then SIGHUP reloads.",
    "malformed_request": "Repair how the body is made; the detail states what could not be read.",
    "method_not_allowed": "Take a method of `Allow`.",
    "no_image": "Put an image into the body.",
    "not_found": "Look the path up in [the API](../api.md), the model in `GET /model`.",
    "not_implemented": "Send the body with a Content-Length, or chunked.",
    "not_ready": "Retry; `/health` shows what the server waits for.",
    "queue_full": "Retry after Retry-After, with fewer requests at a time.",
    "reload_failed": "Repair what the detail or log names, and reload; the old model serves on.",
    "request_timeout": "Send the head at once; look for a slow or broken network.",
    "too_large": "Stay below the limit that the detail names.",
    "too_many_connections": "Keep connections and reuse them; retry later.",
    "too_many_images": "Send them in several requests.",
    "too_many_pixels": "Scale the image down, or raise the limit.",
    "too_many_request_pixels": "Send them in several requests, or raise the limit.",
    "too_much_memory": "Scale the image down, save it as a JPEG, or give the server more memory.",
    "unauthorized": "Send `Authorization: Bearer KEY` or `X-API-Key: KEY`.",
    "undecodable_image": "Save the image again; it is empty, cut off or corrupt.",
    "unsupported_image": "Convert the image to JPEG, PNG, WebP, BMP or TIFF, or send "
    "a `Content-Type` that is served and no `Content-Encoding`; the detail names which.",
    "uploads_full": "Retry after Retry-After, with smaller bodies or fewer at a time.",
}

ADVICE_AT_START: Mapping[str, str] = {
    "artifact_invalid": "Look at the file with `python -m export inspect FILE`; export it again.",
    "provider_unavailable": "Ask `python -m server doctor`; it names what is missing and the fix.",
    "settings_invalid": "Look the name and its range up in [settings](settings.md).",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """An error code.

    Attributes:
        code: in responses and metrics.
        statuses: HTTP statuses that it comes with; nearly always one.
        when: the cause, a sentence.
        retry_after: what is said of the header; empty where there is none.
    """

    code: str
    statuses: tuple[int, ...]
    when: str
    retry_after: str = ""


def all_faults() -> dict[str, Fault]:
    """Every code that a response can have."""
    faults = [*_of_requests(), *_of_connections(), *_of_the_framework()]
    merged: dict[str, Fault] = {}
    for fault in faults:
        merged.setdefault(fault.code, fault)
        assert merged[fault.code].statuses == fault.statuses, fault.code
    return merged


def all_starts() -> dict[str, str]:
    """Codes of what stops the start, and when."""
    # Not those that `server.ray` has of its own: they are there once it is imported.
    own = (kind for kind in DeploymentError.__subclasses__() if kind.__module__ == "server.errors")
    return {kind.code: _cause(kind) for kind in own}


def starts_table(codes: Sequence[str]) -> str:
    """A row for each of some codes of what stops the start.

    Raises:
        KeyError: one that is not there, or that there is no advice for.
    """
    known = all_starts()
    rows = ["| code | when | what to do |", "|---|---|---|"]
    rows += [f"| `{code}` | {known[code]} | {ADVICE_AT_START[code]} |" for code in codes]
    return "\n".join(rows)


def errors_table(codes: Sequence[str]) -> str:
    """A row for each of some codes.

    Raises:
        KeyError: one that is not there, or that there is no advice for.
    """
    known = all_faults()
    rows = ["| code | status | when | what to do | Retry-After |", "|---|---|---|---|---|"]
    for code in codes:
        fault = known[code]
        statuses = ", ".join(map(str, fault.statuses))
        rows.append(
            f"| `{code}` | {statuses} | {fault.when} | {ADVICE[code]} | {fault.retry_after} |"
        )
    return "\n".join(rows)


def _of_requests(kind: type[ServerError] = ServerError) -> Iterator[Fault]:
    if issubclass(kind, DeploymentError | SessionLost):
        return
    below = kind.__subclasses__()
    codes = sorted(TooLarge.CODES) if kind is TooLarge else [] if below else [kind.code]
    retry_after = FROM_THE_QUEUE if issubclass(kind, Unavailable) else ""
    for code in codes:
        status = status_of(kind("", code=code) if kind is TooLarge else kind(""))
        yield Fault(code, (status,), WHEN.get(code) or _cause(kind), retry_after)
    for each in below:
        yield from _of_requests(each)


def _of_connections() -> Iterator[Fault]:
    """What is raised as `BadHttp(status, code, detail)` before there is a request."""
    for path in sorted(SERVER.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "BadHttp":
                status, code = node.args[:2]
                assert isinstance(status, ast.Constant)
                named = code.value if isinstance(code, ast.Constant) else TOO_MANY_CONNECTIONS
                retry_after = ONE_SECOND if status.value == HTTPStatus.SERVICE_UNAVAILABLE else ""
                yield Fault(str(named), (int(status.value),), WHEN[str(named)], retry_after)  # type: ignore[arg-type]


def _of_the_framework() -> Iterator[Fault]:
    for status in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED):
        code = status.name.lower()
        yield Fault(code, (int(status),), WHEN[code])
    yield Fault(INTERNAL, (500,), WHEN[INTERNAL])


def _cause(kind: type[ServerError]) -> str:
    return " ".join((kind.__doc__ or "").split("\n\n")[0].split())
