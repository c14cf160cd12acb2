"""What a request's head may be; what two servers might read differently is refused."""

import httptools

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 256
MAX_LENGTH_DIGITS = 19  # of Content-Length; zeros in front would make it as long as the head


class BadHttp(Exception):
    """What came is not a request that is served; raised inside the parser's callbacks."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code


def check_head(
    parser: httptools.HttpRequestParser, url: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    """Refuses what the parser lets pass: it is strict about all else.

    Args:
        parser: at the end of the head.
        url: as in the request line.
        headers: names in lower case.

    Raises:
        BadHttp: see there.
    """
    if len(url) + sum(len(name) + len(value) + 4 for name, value in headers) > MAX_HEAD_BYTES:
        raise head_too_large()
    version = parser.get_http_version()
    if version not in ("1.0", "1.1"):
        raise BadHttp(505, "http_version_not_supported", f"HTTP/{version} is not served")
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) > 1 or (version == "1.1" and not hosts):
        raise BadHttp(400, "bad_http", "a request has one Host header")
    digits = max((len(value) for name, value in headers if name == b"content-length"), default=0)
    if digits > MAX_LENGTH_DIGITS:
        detail = f"Content-Length has {digits} digits; at most {MAX_LENGTH_DIGITS} are read"
        raise BadHttp(400, "bad_http", detail)
    encodings = [value for name, value in headers if name == b"transfer-encoding"]
    if encodings and (version == "1.0" or [each.lower() for each in encodings] != [b"chunked"]):
        raise BadHttp(501, "not_implemented", "the only Transfer-Encoding served is chunked")
    if parser.get_method() == b"CONNECT":
        raise BadHttp(501, "not_implemented", "CONNECT is not served")
    try:
        path = httptools.parse_url(url).path
    except httptools.HttpParserInvalidURLError:
        path = None
    if not path or not path.startswith(b"/"):
        raise BadHttp(400, "bad_http", "the request's URL is not valid")


def head_too_large() -> BadHttp:
    """The refusal of a head of too many bytes."""
    detail = f"the request line and the headers have over {MAX_HEAD_BYTES} bytes"
    return BadHttp(431, "headers_too_large", detail)


def cause_of(error: httptools.HttpParserError) -> BadHttp:
    """What was wrong, from what the parser makes of it."""
    if isinstance(error, httptools.HttpParserCallbackError) and error.__context__ is not None:
        if isinstance(error.__context__, BadHttp):
            return error.__context__
        raise error.__context__
    return BadHttp(400, "bad_http", f"this is not a valid HTTP/1.1 request: {error}")
