"""Dynamic batching: a bounded, fair queue in front of inferences that run side by side."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic

from server.errors import InferenceFailed, QueueFull, SessionLost
from server.serving.fair_queue import (
    Entry,
    FairQueue,
    Flow,
    InferenceResult,
    Item,
    Result,
    fail,
    is_pending,
)


@dataclass(slots=True)
class Reservation(Generic[Item, Result]):
    """Places in the queue that one request holds for its images until it submits them."""

    _batcher: "Batcher[Item, Result]"
    _held: int
    _flow: Flow

    async def submit(self, item: Item, deadline: float = math.inf) -> InferenceResult[Result]:
        """Puts an item into one of the places and waits for its own result.

        Args:
            item: what `run_batch` takes.
            deadline: seconds of the event loop's clock; later the item is not run any more.

        Raises:
            InferenceFailed: the model failed on the item.
            DeadlineExceeded: the deadline passed while the item waited.
        """
        assert self._held > 0, "more items than reserved places"
        self._held -= 1
        return await self._batcher._submit(self, item, deadline)

    def release(self, images: int = 1) -> None:
        """Frees places whose images will not be submitted."""
        assert self._held >= images
        self._held -= images
        self._batcher._free(images)


class Batcher(Generic[Item, Result]):
    """Groups waiting items of one bucket and hands them to `run_batch`.

    A batch starts as soon as one of the instances is free and one of these holds: a bucket has
    `max_batch_size` items; its first item has waited `max_queue_delay_s`; or nobody holds a
    reserved place, so that waiting longer could bring no company (a lone client never pays the
    delay). Among buckets that may start, the one whose first item has the least virtual start goes
    first.

    What waits is spread over the free instances before batches grow: so it is on CPUs, of which
    each instance has its own. Instances of one GPU share it, and full batches are worth more there:
    without `spread`, batches grow first, and beside a batch that runs only a full one starts, or
    what waited already when one ended.

    A batch of several that fails is run again item by item, once, so that one bad item takes no
    other along.

    Args:
        run_batch: takes 1..max_batch_size items of one bucket, and whether nothing else runs,
            waits or is on its way; returns as many results in order.
        bucket: the items of one batch have equal values of it.
        max_queue_delay_s: seconds, >= 0; 0 batches only what already waits.
        max_queue_images: items that may be reserved or wait, >= 1; past it `reserve` raises.
        instances: batches that may run at the same time, >= 1.
        max_batch_size: items, >= 1.
        spread: over the instances before batches grow.
    """

    def __init__(
        self,
        run_batch: Callable[[Sequence[Item], bool], Awaitable[Sequence[Result]]],
        *,
        bucket: Callable[[Item], Hashable],
        max_queue_delay_s: float,
        max_queue_images: int,
        instances: int = 1,
        max_batch_size: int = 1,
        spread: bool = True,
    ) -> None:
        self.instances = instances
        self.max_batch_size = max_batch_size
        self.spread = spread
        self._run_batch = run_batch
        self._bucket = bucket
        self._max_queue_delay_s = max_queue_delay_s
        self._max_queue_images = max_queue_images
        self._waiting = FairQueue[Item, Result]()
        self._reserved = 0
        self._running: list[list[Entry[Item, Result]]] = []
        self._changed = asyncio.Event()
        self._last_end = -math.inf  # of a batch, by the event loop's clock
        self._ended = False
        self._item_s = 0.0  # moving average of an instance's seconds per item; 0 before the first

    @property
    def queue_images(self) -> int:
        """Items that are reserved or wait for a batch; those in running batches don't count."""
        return self._reserved + self._waiting.images

    @property
    def running_batches(self) -> int:
        """Instances that are busy."""
        return len(self._running)

    def resize(self, *, instances: int, max_batch_size: int, spread: bool = True) -> None:
        """Changes how many batches may run at the same time, and their size, from the next on."""
        self.instances = instances
        self.max_batch_size = max_batch_size
        self.spread = spread
        self._changed.set()

    def retry_after_s(self) -> int:
        """Seconds until the queue should be empty at the measured rate; 1..60."""
        empty_in_s = self.queue_images * self._item_s / self.instances
        return max(1, min(60, math.ceil(empty_in_s)))

    @contextmanager
    def reserve(self, images: int) -> Iterator[Reservation[Item, Result]]:
        """Holds places for a request's images; those not submitted are free again afterwards.

        Raises:
            QueueFull: at once, when there is not a place for each.
        """
        reservation = self.hold(images)
        try:
            yield reservation
        finally:
            reservation.release(reservation._held)

    def hold(self, images: int) -> Reservation[Item, Result]:
        """As `reserve`, where each place is submitted or released one by one.

        Raises:
            QueueFull: at once, when there is not a place for each.
        """
        self._refuse(images)
        self._reserved += images
        return Reservation(self, images, Flow(images))

    async def serve(self) -> None:
        """Runs batches until cancelled; a failed batch does not stop it.

        Anything else that ends it is a fault of the server: items that wait then fail.

        Raises:
            SessionLost: `run_batch` raised it, and so would every later batch.
        """
        fault: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as instances:
                while True:
                    batch = await self._next_batch()
                    sole = not self._running and len(batch) == 1 and self.queue_images == 0
                    self._running.append(batch)
                    instances.create_task(self._run(batch, sole))
                    del batch  # or the last one, with its model, would stay until the next
        except BaseExceptionGroup as faults:
            fault = faults.exceptions[0]
        finally:
            self._ended = True
            # In the instances, too: a task that is cancelled before it begins never runs its batch.
            for entries in (self._waiting.clear(), *self._running):
                for entry in entries:
                    fail(entry, "the batch loop has ended")
            self._running = []
        assert fault is not None, "only a fault ends the loop"
        raise fault  # out here, so that the group is not its context

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

    async def _submit(
        self, reservation: Reservation[Item, Result], item: Item, deadline: float
    ) -> InferenceResult[Result]:
        self._free(1)
        if self._ended:
            raise InferenceFailed("the batch loop has ended")
        bucket = self._bucket(item)
        entry = self._waiting.add(bucket, reservation._flow, item, deadline)
        try:
            return await entry.future
        except asyncio.CancelledError:
            # A client that gave up leaves the queue now, so that its place is free.
            self._waiting.remove(bucket, entry)
            raise

    async def _next_batch(self) -> list[Entry[Item, Result]]:
        """Waits until a batch may start, and takes it out of the queue."""
        loop = asyncio.get_running_loop()
        while True:
            waiting = self._waiting.buckets
            startable_s = {
                bucket: self._startable_at(entries) for bucket, entries in waiting.items()
            }
            ready = [bucket for bucket, at_s in startable_s.items() if at_s <= loop.time()]
            if ready and len(self._running) < self.instances:
                batch = self._take(min(ready, key=lambda bucket: waiting[bucket][0]))
                if batch:
                    return batch
                continue
            self._changed.clear()
            # With every instance busy only the end of a batch can help, and that is a change.
            later_s = (at_s for at_s in startable_s.values() if at_s < math.inf)
            wake_s = min(later_s, default=None) if not ready else None
            try:
                async with asyncio.timeout_at(wake_s):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def _startable_at(self, entries: Sequence[Entry[Item, Result]]) -> float:
        """When a batch of one bucket may start, in seconds of the event loop's clock."""
        if len(entries) >= self.max_batch_size:
            return -math.inf
        if self._running and not self.spread and entries[0].submitted > self._last_end:
            return math.inf  # the end of a batch is a change
        if self._reserved == 0:
            return -math.inf
        return entries[0].submitted + self._max_queue_delay_s

    def _take(self, bucket: Hashable) -> list[Entry[Item, Result]]:
        """The items of the next batch; none when all that waited were late or given up."""
        free = self.instances - len(self._running) if self.spread else 1
        size = math.ceil(len(self._waiting.buckets[bucket]) / free)
        return self._waiting.take(bucket, min(size, self.max_batch_size))

    async def _run(self, batch: list[Entry[Item, Result]], sole: bool) -> None:
        try:
            if not await self._attempt(batch, sole):
                for entry in batch:
                    if is_pending(entry):
                        await self._attempt([entry], False)
        except BaseException:
            for entry in batch:  # those that were still to be tried again
                fail(entry, "the batch loop has ended")
            raise
        finally:
            self._running = [each for each in self._running if each is not batch]
            self._last_end = asyncio.get_running_loop().time()
            self._changed.set()

    async def _attempt(self, batch: list[Entry[Item, Result]], sole: bool) -> bool:
        """Runs a batch; false when it failed and its items should be tried one by one."""
        started = time.perf_counter()
        size = len(batch)
        try:
            results = await self._run_batch([entry.item for entry in batch], sole)
            if len(results) != size:
                raise ValueError(f"{size} items gave {len(results)} results")
        except BaseException as error:
            fatal = isinstance(error, SessionLost) or not isinstance(error, Exception)
            if not fatal and size > 1:
                return False
            while batch:  # emptied, as the error's traceback holds this frame
                fail(batch.pop(), f"the batch of {size} failed", error)
            if fatal:
                raise
            return True
        took_s = time.perf_counter() - started
        self._observe(took_s / size)
        for entry, result in zip(batch, results, strict=True):
            if not entry.future.done():
                entry.future.set_result(
                    InferenceResult(result, started - entry.submitted_at, took_s)
                )
        return True

    def _observe(self, item_s: float) -> None:
        self._item_s = item_s if self._item_s == 0 else 0.8 * self._item_s + 0.2 * item_s
