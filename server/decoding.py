"""The threads that decode, within the memory that there is for it."""

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from server.concurrency import ClientLeft
from server.decode_memory import Claim, DecodeMemory, NoRoom
from server.image_memory import costliest_bytes
from server.memory import return_large_blocks
from server.threads import DECODE_NICENESS, nice_pool, on_pool_until

Result = TypeVar("Result")


class Decoding:
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
        self.memory = DecodeMemory()
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
        """Seconds for which every thread has been busy with one image; 0 where one is free."""
        started = [*self._started.values()]
        return time.monotonic() - max(started) if len(started) == self.threads else 0.0

    async def run(
        self, work: Callable[[Claim], Result], left: threading.Event | None = None
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

        def begin(claim: Claim) -> Result:
            if left is not None and left.is_set():
                raise ClientLeft
            self._started[claim] = time.monotonic()
            try:
                return work(claim)
            finally:
                del self._started[claim]

        claim = self.memory.claim()
        while True:
            try:
                return await on_pool_until(self._pool, partial(begin, claim), claim.give_back)
            except NoRoom as full:
                needed = full.needed
            claim = await self.memory.wait_for(needed)

    def shut_down(self) -> None:
        """Ends the threads; what has not begun is not done."""
        self._pool.shutdown(wait=False, cancel_futures=True)
