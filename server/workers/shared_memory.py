"""Memory that the engine process shares with its workers: a status, and slots for images.

One anonymous file (memfd), which is no file in /dev/shm and is gone with the last process that has
it. A slot is an image's canvas and, behind it, its candidates. What no image has used yet takes no
memory.

    | status, one page | slot | slot | ... | slot | slots of a later, larger model ...
"""

import fcntl
import mmap
import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from server.errors import QueueFull
from server.serving.interface import Candidates, QueueStatus

PAGE_BYTES = mmap.PAGESIZE
ROW_BYTES = 6 * 4


class SlotLayout(NamedTuple):
    """What a slot has to hold.

    Attributes:
        pixel_bytes: of the largest canvas.
        rows: of candidates, K.
    """

    pixel_bytes: int
    rows: int

    @property
    def candidates_at(self) -> int:
        """Where the candidates begin, in bytes from the slot."""
        return -(-self.pixel_bytes // 64) * 64

    @property
    def slot_bytes(self) -> int:
        """Whole pages, so that slots can be given back to the system."""
        return -(-(self.candidates_at + self.rows * ROW_BYTES) // PAGE_BYTES) * PAGE_BYTES


class SharedFile:
    """The memory as one process sees it.

    Args:
        file: the descriptor; stays open.
    """

    def __init__(self, file: int) -> None:
        self.file = file
        self._map = mmap.mmap(file, os.fstat(file).st_size)
        self.status = SharedStatus(self._map)

    @property
    def size(self) -> int:
        """Bytes, now."""
        return len(self._map)

    def grow(self, size: int) -> None:
        """Makes the file so large, for all processes; others see it when they look there."""
        os.ftruncate(self.file, size)
        # Arrays that lie in the map of before keep it; both show the same memory.
        self._map = mmap.mmap(self.file, size)

    def pixels(self, slot: int, height: int, width: int) -> NDArray[np.uint8]:
        """The canvas of a slot, (height, width, 3)."""
        count = height * width * 3
        return np.frombuffer(self._reaching(slot + count), np.uint8, count, slot).reshape(
            height, width, 3
        )

    def candidates(self, start: int, rows: int) -> Candidates:
        """The (rows, 6) candidates that begin somewhere."""
        whole = np.frombuffer(self._reaching(start + rows * ROW_BYTES), np.float32, rows * 6, start)
        return whole.reshape(rows, 6)

    def give_to_system(self, start: int, size: int) -> None:
        """Forgets whole pages; they take no memory until they are written again."""
        self._map.madvise(mmap.MADV_REMOVE, start, size)

    def _reaching(self, end: int) -> mmap.mmap:
        if end > len(self._map):  # the engine process has made it larger
            self._map = mmap.mmap(self.file, os.fstat(self.file).st_size)
        return self._map


class SharedStatus:
    """The queue's status, which the engine process writes and every worker reads without a message.

    Each number is eight aligned bytes, so that it is read as it was written.
    """

    def __init__(self, shared: mmap.mmap) -> None:
        self._numbers = np.frombuffer(shared, np.float64, len(QueueStatus._fields))

    def write(self, status: QueueStatus) -> None:
        """Shows it to the workers."""
        for index, number in enumerate(status):
            self._numbers[index] = number

    def read(self) -> QueueStatus:
        """What was written last; zeros before the first."""
        images, retry_after_s, instances, active, oldest, written = self._numbers.tolist()
        return QueueStatus(
            int(images), int(retry_after_s), int(instances), int(active), oldest, written
        )


class SlotPool:
    """The slots, as the engine process hands them out.

    Attributes:
        shared: the memory.
    """

    def __init__(self) -> None:
        file = os.memfd_create("yolov8-fla", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(file, PAGE_BYTES)
        # A process that reads where the file has been cut off dies, and workers have the file too.
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self.shared = SharedFile(file)
        self.shared.status.write(QueueStatus(0, 1, 0, 0))
        self._areas: list[_Area] = []

    @property
    def count(self) -> int:
        """How many there are now."""
        return self._areas[-1].count if self._areas else 0

    @property
    def taken(self) -> int:
        """How many are handed out."""
        return sum(area.count - len(area.free) for area in self._areas)

    def fit(self, layout: SlotLayout, count: int) -> None:
        """Makes sure of so many slots with so much room, for those that are taken from now on.

        The slots of before, where they are too small, go when the last of them comes back.
        """
        last = self._areas[-1] if self._areas else None
        if last is not None:
            layout = SlotLayout(*(max(pair) for pair in zip(last.layout, layout, strict=True)))
            count = max(last.count, count)
            if (last.layout, last.count) == (layout, count):
                return
        start = self.shared.size
        self.shared.grow(start + layout.slot_bytes * count)
        self._areas.append(_Area(start, layout, count))
        if last is not None:
            self._forget_if_idle(last)

    def take(self, count: int) -> list["Lease"]:
        """Hands out slots.

        Raises:
            QueueFull: there are not so many; those of answered images are still being read.
        """
        area = self._areas[-1]
        if len(area.free) < count:
            raise QueueFull(
                f"{area.count - len(area.free)} of {area.count} images are still being answered "
                f"and {count} more came"
            )
        # The last that came back first: it is in the cache, and the others need no memory.
        return [
            Lease(
                self.shared, area.free.pop(), area.layout, lambda slot: self._come_back(area, slot)
            )
            for _ in range(count)
        ]

    def close(self) -> None:
        """Closes the file."""
        os.close(self.shared.file)

    def _come_back(self, area: "_Area", slot: int) -> None:
        area.free.append(slot)
        if area is not self._areas[-1]:
            self._forget_if_idle(area)

    def _forget_if_idle(self, area: "_Area") -> None:
        if len(area.free) == area.count:
            self._areas.remove(area)
            self.shared.give_to_system(area.start, area.layout.slot_bytes * area.count)


class _Area:
    """Slots of one size, one after the other."""

    def __init__(self, start: int, layout: SlotLayout, count: int) -> None:
        self.start = start
        self.layout = layout
        self.count = count
        self.free = [start + i * layout.slot_bytes for i in reversed(range(count))]


class Lease:
    """A slot that a worker has; a `server.serving.model_runner.SharedBuffer`.

    It comes back when the worker has released it and no inference uses it.

    Attributes:
        slot: its offset.
    """

    def __init__(
        self, shared: SharedFile, slot: int, layout: SlotLayout, come_back: Callable[[int], None]
    ) -> None:
        self.slot = slot
        self.layout = layout
        self._shared = shared
        self._come_back = come_back
        self._calls = 0
        self._released = False

    def pixels(self, height: int, width: int) -> NDArray[np.uint8]:
        """The canvas."""
        return self._shared.pixels(self.slot, height, width)

    def release(self) -> None:
        """The worker does not need it any more."""
        self._released = True
        if self._calls == 0:
            self._come_back(self.slot)

    def enter(self) -> None:
        """A call begins to use it."""
        if not self._released:  # else it may be another's already
            self._calls += 1

    def leave(self) -> None:
        """The call uses it no more."""
        if self._calls:
            self._calls -= 1
            if self._released and self._calls == 0:
                self._come_back(self.slot)

    def keep(self, candidates: Candidates) -> Candidates:
        """Lays what was found behind the pixels."""
        if self._calls:
            start = self.slot + self.layout.candidates_at
            self._shared.candidates(start, len(candidates))[:] = candidates
        return candidates
