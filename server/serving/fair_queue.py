"""What waits for the model, and in which order it is served.

Requests are flows of weighted fair queueing (the clock is that of WF2Q+, Bennett and Zhang 1996): a
single image waits for a few images of each request that is before it, and not for all 64 of one. A
request of n images has the share of sqrt(n) single ones: with the share of one it would be late
wherever many single images come, with that of n they would be.
"""

import asyncio
import heapq
import math
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Generic, TypeVar

from server.errors import DeadlineExceeded, InferenceFailed

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class InferenceResult(Generic[Result]):
    """One item's result, and what it waited for.

    Attributes:
        queue_s: seconds from `submit` to the start of its batch.
        inference_s: seconds its batch took.
    """

    result: Result
    queue_s: float
    inference_s: float


class Flow:
    """One request's items, and when the next of them is due.

    Args:
        images: in the request, >= 1.
    """

    def __init__(self, images: int) -> None:
        self.weight = math.ceil(math.sqrt(images))
        self.waiting = 0  # of its items
        self.next_start = 0.0


@dataclass(order=True, slots=True)
class Entry(Generic[Item, Result]):
    """One item that waits; the least is the next of its bucket."""

    virtual_start: float
    arrival: int
    flow: Flow = field(compare=False)
    item: Item = field(compare=False)
    submitted: float = field(compare=False)  # seconds of the event loop's clock, as `deadline`
    submitted_at: float = field(compare=False)  # of a finer clock: uvloop's steps in milliseconds
    deadline: float = field(compare=False)
    future: asyncio.Future[InferenceResult[Result]] = field(compare=False)


class FairQueue(Generic[Item, Result]):
    """Items by bucket, each bucket in the order of their virtual start.

    Attributes:
        images: items that wait; a number, as metrics are read on another thread.
        weight: of the requests that they belong to.
    """

    def __init__(self) -> None:
        self.images = 0
        self._buckets: dict[Hashable, list[Entry[Item, Result]]] = {}  # heaps
        self._arrivals = count()
        self._virtual_time = 0.0  # that a request has which comes now
        self._time_step = 0.0  # what the batch that was taken last adds to it
        self.weight = 0

    @property
    def buckets(self) -> Mapping[Hashable, Sequence[Entry[Item, Result]]]:
        """What waits in each bucket in which something does, the next one first."""
        return self._buckets

    def add(self, bucket: Hashable, flow: Flow, item: Item, deadline: float) -> Entry[Item, Result]:
        """Lets an item wait.

        Args:
            bucket: of the item.
            flow: of its request.
            item: what.
            deadline: seconds of the event loop's clock; later it is not taken any more.
        """
        loop = asyncio.get_running_loop()
        virtual_start = max(flow.next_start, self._virtual_time)
        flow.next_start = virtual_start + 1 / flow.weight
        entry = Entry[Item, Result](
            virtual_start,
            next(self._arrivals),
            flow,
            item,
            loop.time(),
            time.perf_counter(),
            deadline,
            loop.create_future(),
        )
        heapq.heappush(self._buckets.setdefault(bucket, []), entry)
        self._count(flow, 1)
        return entry

    def remove(self, bucket: Hashable, entry: Entry[Item, Result]) -> None:
        """Takes one out, wherever it stands; nothing where it does not wait any more."""
        entries = self._buckets.get(bucket, [])
        if entry in entries:
            entries.remove(entry)
            self._count(entry.flow, -1)
            heapq.heapify(entries)
            if not entries:
                del self._buckets[bucket]

    def take(self, bucket: Hashable, size: int) -> list[Entry[Item, Result]]:
        """The next items of a bucket, up to `size`; none when all were late or given up."""
        entries = self._buckets[bucket]
        weight = self.weight
        batch: list[Entry[Item, Result]] = []
        while entries and len(batch) < size:
            entry = heapq.heappop(entries)
            self._count(entry.flow, -1)
            if is_pending(entry):
                batch.append(entry)
        if not entries:
            del self._buckets[bucket]  # a bucket may hold a model that is being replaced
        if batch:
            # It also passes when only newcomers are served, or an image of a later start
            # would wait for as long as there are any.
            self._virtual_time = max(self._virtual_time + self._time_step, batch[0].virtual_start)
            self._time_step = len(batch) / weight
        return batch

    def clear(self) -> list[Entry[Item, Result]]:
        """Takes all out."""
        entries = [entry for each in self._buckets.values() for entry in each]
        self._buckets.clear()
        self.images = self.weight = 0
        return entries

    def _count(self, flow: Flow, change: int) -> None:
        """Notes that an item of a request came, 1, or left, -1."""
        waited = flow.waiting > 0
        flow.waiting += change
        self.images += change
        self.weight += flow.weight * ((flow.waiting > 0) - waited)


def is_pending(entry: Entry[Any, Any]) -> bool:
    """Whether somebody waits for the item, and it is in time; fails it when it is late."""
    if entry.future.done():
        return False
    if entry.deadline > asyncio.get_running_loop().time():
        return True
    late = DeadlineExceeded("the deadline passed while the image waited")
    entry.future.set_exception(late)
    return False


def fail(entry: Entry[Any, Any], message: str, cause: BaseException | None = None) -> None:
    """Fails an item that has no answer yet."""
    # Each entry has an error of its own: a shared one would gather every request's traceback.
    if not entry.future.done():
        failure = InferenceFailed(message)
        failure.__cause__ = cause
        entry.future.set_exception(failure)
