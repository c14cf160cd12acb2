"""What the person who waits for a job sees: lines on standard error."""

import sys
import time
from collections import Counter
from typing import TextIO

import pyarrow.compute as pc
import pyarrow.dataset as ds

from server.ray.detect_folder.passes import PartDone


class Progress:
    """Counts images, and says now and then how many are done and how long the others will take.

    Args:
        images: of the whole job.
        done: of them, by an earlier run.
        every_s: seconds between two lines at least.
        stream: where they go; standard error by default.
    """

    def __init__(
        self, images: int, done: int, *, every_s: float = 5.0, stream: TextIO | None = None
    ) -> None:
        self._images = images
        self._done = done
        self._now_done = 0
        self._failed = 0
        self._every_s = every_s
        self._stream = stream or sys.stderr
        self._first_s: float | None = None  # when the first part was done: workers take a while
        self._first_images = 0
        self._told_s = 0.0

    def part_done(self, part: PartDone) -> None:
        """Counts a part, and tells if it is time."""
        now_s = time.monotonic()
        self._now_done += part.images
        self._failed += part.failed
        if self._first_s is None:
            self._first_s, self._first_images = now_s, self._now_done
        if now_s - self._told_s >= self._every_s:
            self._told_s = now_s
            self.say(self._line(now_s - self._first_s))

    def say(self, line: str) -> None:
        """Prints a line."""
        print(line, file=self._stream, flush=True)

    def _line(self, elapsed_s: float) -> str:
        done = self._done + self._now_done
        line = f"{done:,} of {self._images:,} images ({done / self._images:.0%})"
        rate = (self._now_done - self._first_images) / elapsed_s if elapsed_s > 0 else 0.0
        if rate:
            line += f", {rate:.1f}/s, {duration((self._images - done) / rate)} left"
        return line + (f", {self._failed:,} without detections" if self._failed else "")


def duration(seconds: float) -> str:
    """Seconds in words: 42 s, 7 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def counted(data: ds.Dataset) -> tuple[int, Counter[str]]:
    """Rows of some results, and how many of them have which error; reads one column of them."""
    rows = 0
    errors: Counter[str] = Counter()
    for batch in data.to_batches(columns=["error_code"]):
        rows += batch.num_rows
        for each in pc.value_counts(batch.column(0).drop_null()).to_pylist():
            errors[each["values"]] += each["counts"]
    return rows, errors
