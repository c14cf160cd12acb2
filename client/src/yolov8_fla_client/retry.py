"""Asking again: when, after how long, and until when."""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from itertools import count

from yolov8_fla_client.errors import Unreachable
from yolov8_fla_client.exchange import NoResponse, Operation, Outcome, Request, Response, Send, Wait
from yolov8_fla_client.responses import AGAIN, error_of

# 31 years; of more, clocks and waits overflow.
LONGEST_S = 1e9


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a request is sent again that the server could not take.

    Sent again is what got no answer (refused, reset, timed out), and what was answered with 429,
    502, 503 or 504. All that this client sends is safe to repeat: detecting changes nothing on the
    server, so an image that was detected twice costs time and nothing else. Every other answer is
    final. The wait doubles from `first_wait_s` to `longest_wait_s`, and is a random part of that;
    where the server says `Retry-After`, it is at least that long.

    Attributes:
        attempts: how often a request is sent at most, >= 1; None for as often as time allows.
        deadline_s: seconds from the first attempt after which it is given up, > 0; a wait that
            would end later is not begun.
        first_wait_s: > 0.
        longest_wait_s: >= `first_wait_s`, at most `LONGEST_S`.
    """

    attempts: int | None = None
    deadline_s: float = 300.0
    first_wait_s: float = 0.25
    longest_wait_s: float = 15.0

    def __post_init__(self) -> None:
        if self.attempts is not None and self.attempts < 1:
            raise ValueError(f"attempts must be at least 1, not {self.attempts}")
        if not self.deadline_s > 0:
            raise ValueError(f"deadline_s must be over 0, not {self.deadline_s}")
        if not 0 < self.first_wait_s <= self.longest_wait_s <= LONGEST_S:
            raise ValueError(
                "first_wait_s must be over 0 and not over longest_wait_s, and that not over "
                f"{LONGEST_S:.0f}, not {self.first_wait_s} and {self.longest_wait_s}"
            )

    def wait_s(self, failures: int, retry_after_s: float | None, part: float) -> float:
        """Seconds to wait before the next attempt.

        Args:
            failures: attempts so far, >= 1.
            retry_after_s: as the server asks for; never less is waited, so that clients which were
                refused together come back apart.
            part: random, 0..1.
        """
        # 2.0 ** 1024 would be an error; long before, the longest wait is reached.
        step_s = min(self.longest_wait_s, self.first_wait_s * 2.0 ** min(failures - 1, 60))
        return (
            step_s * (0.5 + 0.5 * part) if retry_after_s is None else retry_after_s + step_s * part
        )


def asking(
    request: Request,
    retry: Retry,
    timeout_s: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    chance: Callable[[], float] = random.random,
) -> Operation[Response]:
    """Sends a request, again and again where that may help.

    Returns:
        The first answer that is final, of whatever status.

    Raises:
        Unavailable: the last answer, when time or attempts are over.
        Unreachable: there was none, or none can come.
    """
    began_s = clock()
    ends_s = began_s + retry.deadline_s
    for failures in count(1):
        left_s = max(ends_s - clock(), 0.001)
        outcome = yield Send(request, min(timeout_s, left_s), ends_s)
        assert outcome is not None
        if isinstance(outcome, Response) and outcome.status not in AGAIN:
            return outcome
        asked_s = retry_after_s(outcome.headers) if isinstance(outcome, Response) else None
        wait_s = retry.wait_s(failures, asked_s, chance())
        over = failures == retry.attempts or clock() + wait_s >= ends_s
        if over or (isinstance(outcome, NoResponse) and not outcome.again):
            raise _given_up(outcome, failures, clock() - began_s, asked_s)
        yield Wait(wait_s)
    raise AssertionError("count() does not end")


def asking_once(
    request: Request, timeout_s: float, *, clock: Callable[[], float] = time.monotonic
) -> Operation[Response]:
    """Sends a request once; returns its answer, of whatever status.

    Raises:
        Unreachable: none came.
    """
    outcome = yield Send(request, timeout_s, clock() + timeout_s)
    if isinstance(outcome, Response):
        return outcome
    assert outcome is not None
    raise Unreachable(outcome.reason)


def retry_after_s(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """What `Retry-After` asks for.

    Args:
        headers: names in lower case. A date counts from the answer's own `Date`, so that clocks
            which differ do no harm.
        now: what a date counts from where the answer has no `Date`; by default this clock's time.

    Returns:
        Seconds, 0..`LONGEST_S`; None where there is no such header, or one that can't be read.
    """
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdecimal():
        return min(LONGEST_S, float(text[:12]))
    until = _date(text)
    if until is None:
        return None
    since = _date(headers.get("date", "")) or now or datetime.now(timezone.utc)
    return min(LONGEST_S, max(0.0, (until - since).total_seconds()))


def _date(text: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # of a year or a time zone with many digits
        return None
    return date if date.tzinfo else date.replace(tzinfo=timezone.utc)


def _given_up(
    outcome: Outcome, attempts: int, elapsed_s: float, asked_s: float | None
) -> Exception:
    attempts_text = f"asked {attempts} times in {elapsed_s:.0f} s" if attempts > 1 else ""
    if isinstance(outcome, Response):
        later = f"the server asks to come again in {asked_s:.0f} s" if asked_s is not None else ""
        return error_of(outcome, asked_s, "; ".join(filter(None, (attempts_text, later))))
    return Unreachable(f"{outcome.reason}; {attempts_text}" if attempts_text else outcome.reason)
