"""Which of a stream's tasks may begin, and which results may go out, whatever runs the tasks.

What runs them (threads, or an event loop) waits for them; this only keeps the books.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator
from itertools import islice
from typing import Generic, TypeVar

from yolov8_fla_client.images import Image

Task = TypeVar("Task", bound=Hashable)
Item = TypeVar("Item")

# Of ordered results, so many times those in flight may wait for one that is late.
WAITING_FOR_A_LATE_ONE = 4


class Window(Generic[Task, Item]):
    """The tasks that run, and the results that wait for earlier ones.

    Args:
        in_flight: tasks that run at once, >= 1.
        ordered: results go out in the order in which their tasks began.
    """

    def __init__(self, in_flight: int, ordered: bool) -> None:
        if in_flight < 1:
            raise ValueError(f"in_flight must be at least 1, not {in_flight}")
        self.running: dict[Task, int] = {}
        self._in_flight = in_flight
        self._ordered = ordered
        self._begun = 0
        self._waiting: dict[int, list[Item]] = {}
        self._next = 0

    def has_room(self) -> bool:
        """Whether one more task may begin: what runs, and what waits, is bounded."""
        held = self._begun - self._next if self._ordered else 0
        return (
            len(self.running) < self._in_flight and held < self._in_flight * WAITING_FOR_A_LATE_ONE
        )

    def begin(self, task: Task) -> None:
        """Takes a task that was started."""
        self.running[task] = self._begun
        self._begun += 1

    def finish(self, done: Iterable[Task], result: Callable[[Task], list[Item]]) -> Iterator[Item]:
        """Hands out what may go out now that tasks are done.

        Args:
            done: some of those that run.
            result: of a task; may raise.

        Raises:
            Exception: that of a task, after the results of the others that are done.
        """
        failure: BaseException | None = None
        for task in sorted(done, key=self.running.__getitem__):
            index = self.running.pop(task)
            try:
                self._waiting[index] = result(task)
            except Exception as error:
                failure = failure or error
        if self._ordered:
            while (results := self._waiting.pop(self._next, None)) is not None:
                self._next += 1
                yield from results
        else:
            for index in sorted(self._waiting):
                yield from self._waiting.pop(index)
        if failure is not None:
            raise failure


def groups_of(images: Iterable[Image], size: int) -> Iterator[list[Image]]:
    """The images in groups, each taken from the source when it is asked for.

    Raises:
        ValueError: `size` is under 1.
    """
    if size < 1:
        raise ValueError(f"images_per_request must be at least 1, not {size}")
    iterator = iter(images)
    while group := list(islice(iterator, size)):
        yield group
