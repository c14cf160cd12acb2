"""When the load generator itself was late: it shares its CPUs with the server it measures."""

import asyncio
import time
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Self

TICK_S = 0.002
# uvloop's timers count whole milliseconds.
LEAST_S = 0.002


@dataclass(slots=True)
class Stalls:
    """Stretches in which an event loop did not come to what was due; ascending, not overlapping.

    Attributes:
        begins_s, ends_s: seconds of `time.perf_counter`.
    """

    begins_s: list[float] = field(default_factory=list)
    ends_s: list[float] = field(default_factory=list)

    def add(self, begin_s: float, end_s: float) -> None:
        """One more, after all others."""
        self.begins_s.append(begin_s)
        self.ends_s.append(end_s)

    def within(self, begin_s: float, end_s: float) -> float:
        """Seconds of the stalls between two times: what the generator may have added itself."""
        total_s = 0.0
        for i in range(bisect_right(self.ends_s, begin_s), len(self.begins_s)):
            if self.begins_s[i] >= end_s:
                break
            total_s += min(self.ends_s[i], end_s) - max(self.begins_s[i], begin_s)
        return total_s

    def lengths_s(self) -> list[float]:
        """Seconds of each, ascending."""
        return sorted(end - begin for begin, end in zip(self.begins_s, self.ends_s, strict=True))


class LoopLag:
    """Watches the running event loop: a timer that should fire every `TICK_S`, and fires late.

    Attributes:
        stalls: those over `LEAST_S` so far.
    """

    def __init__(self) -> None:
        self.stalls = Stalls()
        self._due_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        self._arm(time.perf_counter())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self, now_s: float) -> None:
        self._due_s = now_s + TICK_S
        self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        now_s = time.perf_counter()
        if now_s - self._due_s > LEAST_S:
            self.stalls.add(self._due_s, now_s)
        self._arm(now_s)
