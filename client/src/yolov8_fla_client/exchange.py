"""Requests and what comes of them as values, apart from what sends them.

An operation, such as detecting, is a generator: it yields what has to be done next (send this, wait
so long) and is sent what came of it. It does no I/O, so one and the same drives a blocking and an
asynchronous client, and a test can drive it without either.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Request:
    """A request of HTTP.

    Attributes:
        method: such as "POST".
        path: below the server's address, such as "/detect".
        query: names and values.
        headers: beside those of every request.
        content: the body; None where there is none, or where there are `files`.
        files: of a multipart body, each sent under its number.
    """

    method: str
    path: str
    query: Sequence[tuple[str, str]] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    files: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True)
class Response:
    """An answer of HTTP, read whole; the headers' names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def media_type(self) -> str:
        """Of the body, in lower case and without parameters."""
        return self.headers.get("content-type", "").split(";")[0].strip().lower()


@dataclass(frozen=True, slots=True)
class NoResponse:
    """What came instead of an answer.

    Attributes:
        reason: for people.
        again: whether it may be otherwise next time.
    """

    reason: str
    again: bool = True


@dataclass(frozen=True, slots=True)
class Send:
    """To be sent now.

    Attributes:
        request: what.
        timeout_s: seconds without any progress after which it is given up.
        ends_s: the time, by the operation's clock, at which it is given up in any case.
    """

    request: Request
    timeout_s: float
    ends_s: float


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing is to be done for so many seconds; any outcome may be sent after it."""

    seconds: float


Step: TypeAlias = Send | Wait
Outcome: TypeAlias = Response | NoResponse
Operation: TypeAlias = Generator[Step, Outcome | None, Result]
