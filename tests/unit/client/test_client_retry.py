import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import repeat

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yolov8_fla_client.errors import (
    ImageRefused,
    Refused,
    ServerFailed,
    Unauthorized,
    Unavailable,
    Unreachable,
)
from yolov8_fla_client.exchange import NoResponse, Outcome, Request, Response, Send, Wait
from yolov8_fla_client.responses import error_of
from yolov8_fla_client.retry import LONGEST_S, Retry, asking, retry_after_s

GOOD = Response(200, {}, b"{}")
BUSY = Response(503, {}, b"")
REQUEST = Request("GET", "/model")


class Clock:
    """Time that passes only when it is waited for, and by a fixed time for each answer."""

    def __init__(self, outcomes: Sequence[Outcome], answer_s: float = 0.0) -> None:
        self.now_s = 1000.0
        self.outcomes = iter([*outcomes, *repeat(outcomes[-1], 1000)])
        self.answer_s = answer_s
        self.waits: list[float] = []
        self.sent: list[Send] = []

    def ask(self, retry: Retry, *, part: float = 1.0, timeout_s: float = 60.0) -> Response:
        operation = asking(REQUEST, retry, timeout_s, clock=lambda: self.now_s, chance=lambda: part)
        outcome: Outcome | None = None
        while True:
            try:
                step = operation.send(outcome)
            except StopIteration as end:
                answer: Response = end.value
                return answer
            if isinstance(step, Wait):
                self.waits.append(step.seconds)
                self.now_s += step.seconds
                outcome = None
            else:
                self.sent.append(step)
                self.now_s += self.answer_s
                outcome = next(self.outcomes)


def busy(**headers: str) -> Response:
    return Response(503, {name.replace("_", "-"): value for name, value in headers.items()}, b"")


def test_the_wait_doubles_up_to_the_longest() -> None:
    clock = Clock([BUSY] * 6 + [GOOD])
    assert clock.ask(Retry(first_wait_s=1, longest_wait_s=5)) is GOOD
    assert clock.waits == [1, 2, 4, 5, 5, 5]


@given(st.floats(0, 1), st.integers(1, 3000), st.none() | st.floats(0, 1e6))
def test_no_wait_is_shorter_than_the_server_asks_nor_much_longer(
    part: float, failures: int, asked_s: float | None
) -> None:
    wait_s = Retry(first_wait_s=0.5, longest_wait_s=8).wait_s(failures, asked_s, part)
    assert (asked_s or 0) <= wait_s <= (asked_s or 0) + 8
    assert wait_s > 0 or asked_s == 0


def test_seconds_to_come_again_are_waited_for() -> None:
    clock = Clock([busy(retry_after="7"), GOOD])
    clock.ask(Retry(first_wait_s=1, longest_wait_s=2), part=0.25)
    assert clock.waits == [7.25]


def test_a_date_counts_from_the_servers_own_clock() -> None:
    headers = {
        "date": "Sun, 06 Nov 1994 08:49:37 GMT",
        "retry-after": "Sun, 06 Nov 1994 08:49:57 GMT",
    }
    assert retry_after_s(headers) == 20


def test_a_date_without_a_servers_clock_counts_from_this_one() -> None:
    now = datetime(1994, 11, 6, 8, 49, 0, tzinfo=UTC)
    assert retry_after_s({"retry-after": "Sun, 06 Nov 1994 08:49:57 GMT"}, now) == 57
    assert retry_after_s({"retry-after": "Sun, 06 Nov 1994 08:40:00 GMT"}, now) == 0


@pytest.mark.parametrize("text", ["9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_no_one_is_asked_to_wait_longer_than_can_be_waited(text: str) -> None:
    asked_s = retry_after_s({"retry-after": text}, datetime(1994, 11, 6, tzinfo=UTC))
    assert asked_s == LONGEST_S
    assert asked_s + LONGEST_S < threading.TIMEOUT_MAX


@pytest.mark.parametrize(
    "text",
    [
        "",
        "soon",
        "-3",
        "1.5",
        "²",
        "Sun, 99 Nov 1994 08:49:57 GMT",
        "1 Jan 99999999999999999999 00:00:00 GMT",
        "Mon, 01 Jan 2024 00:00:00 +99999999999999",
    ],
)
def test_what_cannot_be_read_is_as_if_it_were_not_there(text: str) -> None:
    assert retry_after_s({"retry-after": text}) is None
    assert retry_after_s({}) is None


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_may_be_otherwise_later_is_asked_again(status: int) -> None:
    clock = Clock([Response(status, {}, b""), NoResponse("reset"), GOOD])
    assert clock.ask(Retry()) is GOOD
    assert len(clock.sent) == 3


@pytest.mark.parametrize("status", [200, 301, 400, 401, 403, 404, 413, 415, 422, 500, 501])
def test_every_other_answer_is_final(status: int) -> None:
    clock = Clock([Response(status, {}, b"")])
    assert clock.ask(Retry()).status == status
    assert len(clock.sent) == 1


def test_what_can_not_change_is_not_asked_again() -> None:
    clock = Clock([NoResponse("no such scheme", again=False)])
    with pytest.raises(Unreachable, match=r"^no such scheme$"):
        clock.ask(Retry())
    assert len(clock.sent) == 1


def test_the_deadline_ends_it_and_no_wait_goes_over_it() -> None:
    clock = Clock([BUSY], answer_s=2)
    with pytest.raises(Unavailable, match=r"asked \d+ times in \d+ s"):
        clock.ask(Retry(first_wait_s=1, longest_wait_s=4, deadline_s=30))
    assert clock.now_s - 1000 < 30


def test_no_attempt_is_given_more_time_than_is_left() -> None:
    clock = Clock([NoResponse("no progress")], answer_s=20)
    with pytest.raises(Unreachable):
        clock.ask(Retry(first_wait_s=1, longest_wait_s=1, deadline_s=50))
    assert [round(each.timeout_s) for each in clock.sent] == [50, 29, 8]
    assert {each.ends_s for each in clock.sent} == {1050}


@pytest.mark.parametrize(
    "wrong",
    [
        {"attempts": 0},
        {"deadline_s": 0},
        {"deadline_s": float("nan")},
        {"first_wait_s": 0},
        {"first_wait_s": 20, "longest_wait_s": 10},
        {"longest_wait_s": float("inf")},
    ],
)
def test_a_retry_that_can_not_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Retry(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (401, "unauthorized", Unauthorized),
        (403, "keys_not_configured", Unauthorized),
        (413, "body_too_large", ImageRefused),
        (415, "unsupported_image", ImageRefused),
        (422, "undecodable_image", ImageRefused),
        (422, "invalid_parameter", Refused),
        (400, "malformed_request", Refused),
        (500, "inference_failed", ServerFailed),
        (503, "queue_full", Unavailable),
        (504, "deadline_exceeded", Unavailable),
    ],
)
def test_an_error_carries_what_the_problem_says(
    status: int, code: str, kind: type[Refused]
) -> None:
    body = f'{{"code": "{code}", "detail": "why", "request_id": "abc"}}'.encode()
    error = error_of(Response(status, {}, body), 3.0)
    assert type(error) is kind
    assert (error.status, error.code, error.detail) == (status, code, "why")
    assert (error.request_id, error.retry_after_s) == ("abc", 3.0)
    assert str(error) == f"{status} {code}: why (request abc)"


def test_a_proxys_page_becomes_an_error_in_few_words() -> None:
    page = b"<html>\n" + b"nginx " * 1000
    error = error_of(Response(502, {"x-request-id": "p1"}, page))
    assert isinstance(error, Unavailable)
    assert (error.code, error.request_id) == ("bad_gateway", "p1")
    assert len(str(error)) < 300
    odd = error_of(Response(599, {}, b"[1]"))
    assert isinstance(odd, ServerFailed)
    assert odd.code == "http_599"
