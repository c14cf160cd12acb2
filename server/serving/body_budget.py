"""How many bytes all requests' bodies may have in memory together."""

import re
from collections.abc import Mapping

from server.errors import TooLarge, UploadsFull

# Of 64 bits, as HTTP servers read it. Python's int() raises where there are thousands of digits.
_LENGTH = re.compile(r"0*([0-9]{1,19})")


class ByteBudget:
    """Shared by all requests of a server; not for several threads.

    Bytes are taken as they arrive, not when they are announced: an announcement costs a client
    nothing, and with a few of them it could keep everybody else out.

    Attributes:
        max_bytes: taken at the same time.
        taken: bytes, now.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.taken = 0

    def reserve(self) -> "BodyReservation":
        """An empty reservation for one request, which has to release it."""
        return BodyReservation(self)


class BodyReservation:
    """What one request has taken."""

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self._taken = 0

    def take(self, count: int) -> None:
        """Takes bytes before they are kept; raises as `check` does, and then takes none."""
        self.check(count)
        self._taken += count
        self._budget.taken += count

    def check(self, count: int) -> None:
        """Whether bytes that are to come could be taken if they came now.

        Raises:
            UploadsFull: not now.
            TooLarge: never, not even by a request that is alone.
        """
        budget = self._budget
        if self._taken + count > budget.max_bytes:
            raise TooLarge(
                f"the request needs {self._taken + count} bytes of memory; "
                f"max_inflight_body_bytes is {budget.max_bytes}",
                code="body_too_large",
            )
        if budget.taken + count > budget.max_bytes:
            raise UploadsFull(
                f"other requests hold {budget.taken - self._taken} bytes and this one needs "
                f"{self._taken + count}; max_inflight_body_bytes is {budget.max_bytes}"
            )

    def release(self) -> None:
        """Ends the request's hold on memory; safe to call again."""
        self._budget.taken -= self._taken
        self._taken = 0


def announced_bytes(headers: Mapping[str, str]) -> int:
    """What a request's headers say of its body; 0 where they don't."""
    # An HTTP server has refused what is no length before us; a test client may not have.
    announced = _LENGTH.fullmatch(headers.get("content-length", ""))
    return int(announced[1]) if announced else 0
