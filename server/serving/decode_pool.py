"""How much memory images may take at once while they are decoded, and who waits for it.

Of a container's limit, or the machine's memory, `decoding_share` leaves to decoding what nothing
else needs. With 1 GiB and the default model and settings that is about 550 MiB:

    128 MiB   an eighth, spare: allocators, connections, another model during a reload
    128 MiB   bodies: max_inflight_body_bytes, by default an eighth, 256 MiB at most
     63 MiB   canvases: max_queue_images of the largest bucket
    160 MiB   the process when it is ready
    545 MiB   decoding

A thread learns what an image needs when it has read its header. Where that is not there, the
image waits outside of the threads, and the first that waits is the first to go on: none is
overtaken by smaller ones.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from server.errors import TooLarge
from server.host import return_large_blocks
from server.serving.threads import DECODE_NICENESS, ClientLeft, nice_pool, on_pool_until
from server.vision.decode import costliest_bytes

LEAST_BYTES = 32 * 2**20
_SPARE_SHARE = _BODY_SHARE = 8
_MAX_INFLIGHT_BODY_BYTES = 256 * 2**20

Result = TypeVar("Result")


def body_share(limit_bytes: int) -> int:
    """Bytes of bodies in memory at once, where nobody set them."""
    return min(_MAX_INFLIGHT_BODY_BYTES, limit_bytes // _BODY_SHARE)


def decoding_share(
    limit_bytes: int, *, resident_bytes: int, canvas_bytes: int, inflight_body_bytes: int
) -> int:
    """What decoding may take, at least `LEAST_BYTES`, however small the limit is.

    Args:
        limit_bytes: of the whole process.
        resident_bytes: of the process with its model, warm and idle.
        canvas_bytes: of all canvases that may wait.
        inflight_body_bytes: of all bodies that may be in memory.
    """
    spare = limit_bytes // _SPARE_SHARE
    return max(
        LEAST_BYTES, limit_bytes - spare - resident_bytes - canvas_bytes - inflight_body_bytes
    )


class MemoryUnavailable(Exception):
    """An image needs memory that others have now.

    Attributes:
        needed: bytes.
    """

    def __init__(self, needed: int) -> None:
        super().__init__(f"{needed} bytes of memory are not free now")
        self.needed = needed


class DecodeMemoryLimiter:
    """Memory for decoding, shared by all threads.

    Attributes:
        max_bytes: for all images that are being decoded; None: as much as they need. May be set
            while others wait.
        taken: bytes, now.
    """

    def __init__(self, max_bytes: int | None = None) -> None:
        self.max_bytes = max_bytes
        self.taken = 0
        self._lock = threading.Lock()
        self._waiting: deque[_Waiter] = deque()

    def reserve(self) -> "MemoryReservation":
        """An empty reservation, for an image whose needs are not known yet."""
        return MemoryReservation(self)

    async def wait_for(self, needed: int) -> "MemoryReservation":
        """A reservation of so many bytes, as soon as all that came before have theirs.

        Raises:
            TooLarge: it would have to wait for ever.
        """
        reservation = MemoryReservation(self)
        waiter = _Waiter(reservation, needed, asyncio.get_running_loop(), asyncio.Event())
        with self._lock:
            self._refuse_for_ever(needed)
            self._waiting.append(waiter)
            self._grant_waiting()
        try:
            await waiter.served.wait()
        except asyncio.CancelledError:
            with self._lock:
                if waiter in self._waiting:
                    self._waiting.remove(waiter)
                    self._grant_waiting()
            reservation.release()
            raise
        return reservation

    def _refuse_for_ever(self, needed: int) -> None:
        if self.max_bytes is not None and needed > self.max_bytes:
            raise TooLarge(
                f"decoding the image takes up to {needed} bytes of memory; this server has "
                f"{self.max_bytes} for it",
                code="too_much_memory",
            )

    def _fits(self, more: int) -> bool:
        return self.max_bytes is None or self.taken + more <= self.max_bytes

    def _grant_waiting(self) -> None:
        """Serves those that wait, in order; the lock is held."""
        while self._waiting and self._fits(self._waiting[0].needed):
            waiter = self._waiting.popleft()
            waiter.reservation._taken = waiter.needed
            self.taken += waiter.needed
            waiter.loop.call_soon_threadsafe(waiter.served.set)


class MemoryReservation:
    """What one image has of the memory; to be released once it is decoded."""

    def __init__(self, memory: DecodeMemoryLimiter) -> None:
        self._memory = memory
        self._taken = 0

    def require(self, needed: int) -> None:
        """Makes sure of so many bytes in all, before they are allocated.

        Raises:
            TooLarge: there are never so many; code "too_much_memory".
            MemoryUnavailable: not now; or others have waited for longer.
        """
        memory, more = self._memory, needed - self._taken
        with memory._lock:
            if more <= 0:
                return
            memory._refuse_for_ever(needed)
            if memory._waiting or not memory._fits(more):
                raise MemoryUnavailable(needed)
            memory.taken += more
            self._taken = needed

    def release(self) -> None:
        """Ends the reservation; safe to call again."""
        memory = self._memory
        with memory._lock:
            memory.taken -= self._taken
            self._taken = 0
            memory._grant_waiting()


@dataclass(eq=False, slots=True)
class _Waiter:
    reservation: MemoryReservation
    needed: int
    loop: asyncio.AbstractEventLoop
    served: asyncio.Event


class DecodePool:
    """Runs what decodes images; what has to wait for memory holds no thread.

    Args:
        threads: that decode side by side, >= 1.
        max_image_pixels: of one image.

    Attributes:
        threads: as given.
        memory: what images may take while they are decoded; without bound until `limit`.
    """

    def __init__(self, threads: int, max_image_pixels: int) -> None:
        self.threads = threads
        self.memory = DecodeMemoryLimiter()
        self._max_image_pixels = max_image_pixels
        self._pool = nice_pool(threads, "decode", DECODE_NICENESS)
        self._started: dict[object, float] = {}  # of what runs on a thread now

    def limit(self, max_bytes: int) -> None:
        """Sets how much memory images may take while they are decoded."""
        self.memory.max_bytes = max_bytes
        most = self.threads * costliest_bytes(self._max_image_pixels)
        if most > max_bytes:  # where there is plenty, reusing blocks is faster
            return_large_blocks()

    def hung_s(self) -> float:
        """Seconds for which every thread has been busy with one thing; 0 where one is free."""
        started = [*self._started.values()]
        return time.monotonic() - max(started) if len(started) == self.threads else 0.0

    async def run(
        self, work: Callable[[MemoryReservation], Result], left: threading.Event | None = None
    ) -> Result:
        """Runs what decodes, on a thread that never waits for memory.

        Args:
            work: asks what it is given for the memory that it needs, as it learns how much. Where
                that is not there it begins anew once it is, so it must have done nothing before.
            left: nothing begins once it is set.

        Raises:
            TooLarge: there is never as much memory as it asks for.
            ClientLeft: nobody waits for the work any more.
        """

        def begin(reservation: MemoryReservation) -> Result:
            if left is not None and left.is_set():
                raise ClientLeft
            self._started[reservation] = time.monotonic()
            try:
                return work(reservation)
            finally:
                del self._started[reservation]

        reservation = self.memory.reserve()
        while True:
            try:
                return await on_pool_until(
                    self._pool, partial(begin, reservation), reservation.release
                )
            except MemoryUnavailable as full:
                needed = full.needed
            reservation = await self.memory.wait_for(needed)

    def shut_down(self) -> None:
        """Ends the threads; what has not begun is not done."""
        self._pool.shutdown(wait=False, cancel_futures=True)
