"""Calls beside each other, recordings alone."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from server.inference.cuda.graphs import GraphCapture

LIMIT_S = 20


def test_calls_run_side_by_side() -> None:
    capturing, together = GraphCapture(), threading.Barrier(3)

    def call() -> None:
        with capturing.call():
            together.wait(LIMIT_S)

    with ThreadPoolExecutor(3) as threads:
        for each in [threads.submit(call) for _ in range(3)]:
            each.result(LIMIT_S)


def test_a_recording_waits_for_calls_and_holds_off_those_that_come() -> None:
    capturing = GraphCapture()
    running, end_call, order = threading.Event(), threading.Event(), list[str]()

    def call() -> None:
        with capturing.call():
            running.set()
            assert end_call.wait(LIMIT_S)
            order.append("call ends")

    def record() -> None:
        with capturing.capture():
            order.append("recording")
            assert capturing._running == 0

    def late_call() -> None:
        with capturing.call():
            order.append("late call")

    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(call)
        assert running.wait(LIMIT_S)
        recording = threads.submit(record)
        deadline = time.monotonic() + LIMIT_S
        while not capturing._capturing:  # it has asked, and so comes before whoever asks now
            assert time.monotonic() < deadline
        late = threads.submit(late_call)
        end_call.set()
        for each in (first, recording, late):
            each.result(LIMIT_S)
    assert order == ["call ends", "recording", "late call"]


def test_what_fails_gives_its_turn_back() -> None:
    capturing = GraphCapture()
    for turn in (capturing.call, capturing.capture):
        with pytest.raises(ZeroDivisionError), turn():
            raise ZeroDivisionError
    with capturing.capture():
        pass
    with capturing.call():
        pass
