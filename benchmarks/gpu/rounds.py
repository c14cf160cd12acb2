"""Contenders that take turns, and what came out of the rounds.

A GPU's clocks and a machine's neighbours change over minutes, so contenders never run one after
the other to the end: in each round everyone has a short window, every second round in reverse
order, and what counts is the ratio within a round.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

AT_LEAST, AT_MOST = 3, 15  # rounds


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment on `time.monotonic`, which all processes of a machine share."""

    at_s: float

    @property
    def left_s(self) -> float:
        """Seconds until then, negative after it."""
        return self.at_s - time.monotonic()


@dataclass(frozen=True, slots=True)
class Contender:
    """Work that is timed.

    Attributes:
        name: for the tables.
        call: does one piece of it, and returns when it is done.
        images: of one call, >= 1.
        callers: threads that call at the same time, >= 1.
    """

    name: str
    call: Callable[[], object]
    images: int
    callers: int = 1


@dataclass(frozen=True, slots=True)
class Window:
    """What a contender did in one round.

    Attributes:
        images_per_s: of all its callers.
        call_ms: median of its calls.
        calls: how many there were.
    """

    images_per_s: float
    call_ms: float
    calls: int


Round = dict[str, Window]


def window(contender: Contender, seconds: float, *, at_least: int = 3) -> Window:
    """Calls for so many seconds, and at least so many times, after one call that is not counted."""
    contender.call()

    def calling() -> tuple[list[float], float]:
        times: list[float] = []
        began_s = time.perf_counter()
        while len(times) < at_least or time.perf_counter() - began_s < seconds:
            started_s = time.perf_counter()
            contender.call()
            times.append(time.perf_counter() - started_s)
        return times, time.perf_counter() - began_s

    if contender.callers == 1:
        done = [calling()]
    else:
        with ThreadPoolExecutor(contender.callers) as threads:
            jobs = [threads.submit(calling) for _ in range(contender.callers)]
            done = [each.result() for each in jobs]
    return Window(
        # By each one's own time: the last call of one ends when others have ended.
        images_per_s=sum(contender.images * len(times) / took_s for times, took_s in done),
        call_ms=1e3 * statistics.median(each for times, _ in done for each in times),
        calls=sum(len(times) for times, _ in done),
    )


def turns(
    measures: Mapping[str, Callable[[], Window]],
    deadline: Deadline,
    *,
    at_least: int = AT_LEAST,
    at_most: int = AT_MOST,
) -> Iterator[list[Round]]:
    """Measures everyone in turn, and gives all rounds so far after each.

    Ends after `at_most` rounds, or when so many as `at_least` are there and there is no time for
    another. Nobody is left out of a round.
    """
    rounds: list[Round] = []
    names = list(measures)
    longest_s = 0.0
    while len(rounds) < at_most:
        if len(rounds) >= at_least and deadline.left_s < longest_s:
            return
        began_s = time.monotonic()
        order = names if len(rounds) % 2 == 0 else names[::-1]
        one = {name: measures[name]() for name in order}
        rounds.append({name: one[name] for name in names})
        longest_s = max(longest_s, time.monotonic() - began_s)
        yield rounds


def contest(
    contenders: Sequence[Contender], seconds: float, deadline: Deadline
) -> Iterator[list[Round]]:
    """`turns` of contenders, each in windows of so many seconds."""

    def measure(contender: Contender) -> Callable[[], Window]:
        return lambda: window(contender, seconds)

    return turns({each.name: measure(each) for each in contenders}, deadline)


def window_s(deadline: Deadline, contenders: int, *, share: float = 0.9) -> float:
    """How long windows may be, so that five rounds fit into a share of the time: 0.05 to 1 s."""
    return min(1.0, max(0.05, share * deadline.left_s / (5 * max(1, contenders))))


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, lowest and highest of some rounds' values, and the values themselves."""
    return {
        "median": statistics.median(values),
        "lowest": min(values),
        "highest": max(values),
        "rounds": list(values),
    }


def rates(rounds: Sequence[Round], name: str) -> dict[str, Any]:
    """A contender's images a second and the milliseconds of its calls over the rounds."""
    return {
        "images_per_s": spread([each[name].images_per_s for each in rounds]),
        "call_ms": spread([each[name].call_ms for each in rounds]),
    }


def ratio(rounds: Sequence[Round], name: str, to: str) -> dict[str, Any]:
    """Images a second of one by those of another, taken within each round."""
    return spread([each[name].images_per_s / each[to].images_per_s for each in rounds])
