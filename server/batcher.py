"""Dynamic batching: images that wait at the same time become one model call."""

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from server.errors import DeadlineExceeded, InferenceFailed, QueueFull, SessionLost

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Answer(Generic[Result]):
    """One item's result, and what it waited for.

    Attributes:
        queue_s: seconds from `submit` to the start of its batch.
        inference_s: seconds its batch took.
    """

    result: Result
    queue_s: float
    inference_s: float


@dataclass(eq=False, slots=True)
class _Entry(Generic[Item, Result]):
    item: Item
    submitted: float  # seconds of the event loop's clock, as `deadline`
    deadline: float
    future: asyncio.Future[Answer[Result]]


@dataclass(slots=True)
class Slots(Generic[Item, Result]):
    """Places in the queue that one request holds for its images until it submits them."""

    _batcher: "Batcher[Item, Result]"
    _held: int

    async def submit(self, item: Item, deadline: float = math.inf) -> Answer[Result]:
        """Puts an item into one of the places and waits for its own result.

        Args:
            item: what `run_batch` takes.
            deadline: seconds of the event loop's clock; later the item is not run any more.

        Raises:
            InferenceFailed: the batch that held the item failed.
            DeadlineExceeded: the deadline passed while the item waited.
        """
        assert self._held > 0, "more items than reserved places"
        self._held -= 1
        return await self._batcher._submit(item, deadline)

    def give_back(self) -> None:
        """Frees one place whose image will not be submitted."""
        assert self._held > 0
        self._held -= 1
        self._batcher._free(1)


@dataclass(slots=True)
class _Rate:
    """Items a second of recent batches, as a moving average; 0 before the first."""

    per_s: float = field(default=0.0)

    def observe(self, items: int, seconds: float) -> None:
        now = items / max(seconds, 1e-6)
        self.per_s = now if self.per_s == 0 else 0.8 * self.per_s + 0.2 * now


class Batcher(Generic[Item, Result]):
    """Groups waiting items of one bucket and hands them to `run_batch`, one batch at a time.

    A batch starts as soon as the model is free and one of these holds: a bucket has
    `max_batch_size` items; its oldest item has waited `max_queue_delay_s`; or nobody holds a
    reserved place, so that waiting longer could bring no company (a lone client never pays the
    delay). Among buckets that may start, the one with the oldest item goes first.

    Args:
        run_batch: takes 1..max_batch_size items of one bucket, returns as many results in order.
        bucket: the items of one batch have equal values of it.
        max_batch_size: items, >= 1.
        max_queue_delay_s: seconds, >= 0; 0 batches only what already waits.
        max_queue_images: items that may be reserved or wait, >= 1; past it `reserve` raises.
    """

    def __init__(
        self,
        run_batch: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        *,
        bucket: Callable[[Item], Hashable],
        max_batch_size: int,
        max_queue_delay_s: float,
        max_queue_images: int,
    ) -> None:
        self._run_batch = run_batch
        self._bucket = bucket
        self._max_batch_size = max_batch_size
        self._max_queue_delay_s = max_queue_delay_s
        self._max_queue_images = max_queue_images
        self._waiting: dict[Hashable, deque[_Entry[Item, Result]]] = {}
        self._reserved = 0
        self._changed = asyncio.Event()
        self._ended = False
        self._rate = _Rate()

    @property
    def queue_images(self) -> int:
        """Items that are reserved or wait for a batch; those in the running batch don't count."""
        return self._reserved + sum(len(entries) for entries in self._waiting.values())

    def retry_after_s(self) -> int:
        """Seconds until the queue should be empty at the measured rate; 1..60."""
        if self._rate.per_s == 0:
            return 1
        return max(1, min(60, math.ceil(self.queue_images / self._rate.per_s)))

    def refuse_when_full(self) -> None:
        """Raises `QueueFull` when not even one more item would find a place."""
        self._refuse(1)

    @contextmanager
    def reserve(self, images: int) -> Iterator[Slots[Item, Result]]:
        """Holds places for a request's images; those not submitted are free again afterwards.

        Raises:
            QueueFull: at once, when there is not a place for each.
        """
        self._refuse(images)
        self._reserved += images
        slots = Slots(self, images)
        try:
            yield slots
        finally:
            self._free(slots._held)
            slots._held = 0

    async def serve(self) -> None:
        """Runs batches until cancelled; a failed batch does not stop it.

        Anything else that ends it is a fault of the server: items that wait then fail.

        Raises:
            SessionLost: `run_batch` raised it, and so would every later batch.
        """
        try:
            while True:
                await self._run(await self._next_batch())
        finally:
            self._ended = True
            for entries in self._waiting.values():
                for entry in entries:
                    _fail(entry, "the batch loop has ended")
            self._waiting.clear()

    def _refuse(self, images: int) -> None:
        waiting = self.queue_images
        if waiting + images > self._max_queue_images:
            raise QueueFull(
                f"{waiting} images already wait and {images} more came; "
                f"max_queue_images is {self._max_queue_images}"
            )

    def _free(self, images: int) -> None:
        self._reserved -= images
        self._changed.set()

    async def _submit(self, item: Item, deadline: float) -> Answer[Result]:
        if self._ended:
            self._free(1)
            raise InferenceFailed("the batch loop has ended")
        loop = asyncio.get_running_loop()
        entry = _Entry[Item, Result](item, loop.time(), deadline, loop.create_future())
        bucket = self._bucket(item)
        self._waiting.setdefault(bucket, deque()).append(entry)
        self._free(1)
        try:
            return await entry.future
        finally:
            # A client that gave up leaves the queue now, so that its place is free.
            entries = self._waiting.get(bucket)
            if entries and entry in entries:
                entries.remove(entry)

    async def _next_batch(self) -> list[_Entry[Item, Result]]:
        """Waits until a batch may start, and takes it out of the queue."""
        loop = asyncio.get_running_loop()
        while True:
            self._drop_late(loop.time())
            startable_s = {
                bucket: self._startable_at(entries)
                for bucket, entries in self._waiting.items()
                if entries
            }
            ready = [bucket for bucket, at_s in startable_s.items() if at_s <= loop.time()]
            if ready:
                oldest = min(ready, key=lambda bucket: self._waiting[bucket][0].submitted)
                entries = self._waiting[oldest]
                return [entries.popleft() for _ in range(min(len(entries), self._max_batch_size))]
            self._changed.clear()
            try:
                async with asyncio.timeout_at(min(startable_s.values(), default=None)):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def _startable_at(self, entries: deque[_Entry[Item, Result]]) -> float:
        """When a batch of one bucket may start, in seconds of the event loop's clock."""
        if len(entries) >= self._max_batch_size or self._reserved == 0:
            return -math.inf
        return entries[0].submitted + self._max_queue_delay_s

    def _drop_late(self, now: float) -> None:
        for bucket, entries in self._waiting.items():
            kept: deque[_Entry[Item, Result]] = deque()
            for entry in entries:
                if entry.future.done():
                    continue
                if entry.deadline > now:
                    kept.append(entry)
                    continue
                late = DeadlineExceeded("the deadline passed while the image waited")
                entry.future.set_exception(late)
            self._waiting[bucket] = kept

    async def _run(self, batch: list[_Entry[Item, Result]]) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        size = len(batch)
        try:
            results = await self._run_batch([entry.item for entry in batch])
            if len(results) != size:
                raise ValueError(f"{size} items gave {len(results)} results")
        except BaseException as error:
            while batch:  # emptied, as the error's traceback holds this frame
                _fail(batch.pop(), f"the batch of {size} failed", error)
            if isinstance(error, SessionLost) or not isinstance(error, Exception):
                raise
            return
        took_s = loop.time() - started
        self._rate.observe(size, took_s)
        for entry, result in zip(batch, results, strict=True):
            if not entry.future.done():
                entry.future.set_result(Answer(result, started - entry.submitted, took_s))


def _fail(entry: _Entry[Any, Any], message: str, cause: BaseException | None = None) -> None:
    # Each entry has an error of its own: a shared one would gather every request's traceback.
    if not entry.future.done():
        failure = InferenceFailed(message)
        failure.__cause__ = cause
        entry.future.set_exception(failure)
