"""Everything that can go wrong between a program and the server.

DetectClientError
├── Unreachable          no answer came: refused, reset, timed out, or no such host
├── UnexpectedResponse     what answered is not this server, or of another version
└── Refused              the server answered with an error
    ├── Unauthorized     it asks for a key, and none or a wrong one was sent
    ├── ImageRefused   it can't read the image that was sent, or not one so large
    ├── Unavailable      it, or a proxy before it, could not take the request, however often asked
    └── ServerFailed     it took the request and failed

A parameter that the server refuses is a plain `Refused`. Of several images, one that can't be
read is no exception: its `ImageResult` has an `error`.
"""


class DetectClientError(Exception):
    """Base of all errors that the client raises on purpose."""


class Unreachable(DetectClientError):
    """No answer came, however often it was asked for."""


class UnexpectedResponse(DetectClientError):
    """An answer came that this client does not understand; mostly, the address is wrong."""


class Refused(DetectClientError):
    """The server answered with an error.

    Attributes:
        status: of HTTP, such as 422.
        code: the error's stable name, for programs, such as "invalid_parameter"; of an answer that
            is no problem+json (a proxy's) the status in words, such as "bad_gateway".
        detail: what was wrong, for people.
        request_id: under which the server's log has the request; None where it was not told.
        retry_after_s: seconds after which the server asks to come again; None where it was not
            told.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str,
        detail: str,
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.detail = detail
        self.request_id = request_id
        self.retry_after_s = retry_after_s


class Unauthorized(Refused):
    """The server asks for a key, and none or a wrong one was sent."""


class ImageRefused(Refused):
    """The server can't read the one image of the request, or not one so large."""


class Unavailable(Refused):
    """The server, or a proxy before it, could not take the request, however often asked."""


class ServerFailed(Refused):
    """The server took the request and failed; its log has the reason under `request_id`."""
