"""A process from outside: memory, open files and threads, sampled while a scenario runs."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.endurance.trend import Slope, second_half, slope
from benchmarks.endurance.verdict import Criterion

_PAGE = os.sysconf("SC_PAGE_SIZE")
MEGA = 1e6
SHORT_S = 2.0  # a shorter series has no slope that means anything


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at a process.

    Attributes:
        at_s: seconds of `time.perf_counter`.
        rss_bytes: resident memory.
        files: open file descriptors.
        threads: how many.
    """

    at_s: float
    rss_bytes: int
    files: int
    threads: int


def sample(pid: int) -> Sample:
    """Looks at a process of this user.

    Raises:
        OSError: it has ended.
    """
    proc = Path(f"/proc/{pid}")
    rss = int((proc / "statm").read_text().split()[1]) * _PAGE
    files = len(os.listdir(proc / "fd"))  # noqa: PTH208  # only the number is asked
    threads = len(os.listdir(proc / "task"))  # noqa: PTH208
    return Sample(time.perf_counter(), rss, files, threads)


@asynccontextmanager
async def sampled(pid: int, every_s: float = 1.0) -> AsyncIterator[list[Sample]]:
    """Samples a process as long as the block runs; the list grows."""
    samples = [sample(pid)]

    async def watch() -> None:
        with suppress(OSError):
            while True:
                await asyncio.sleep(every_s)
                samples.append(sample(pid))

    watching = asyncio.create_task(watch())
    try:
        yield samples
    finally:
        watching.cancel()


async def settled(pid: int, files: int, limit_s: float = 15.0) -> Sample:
    """A sample when as few files are open as before, or when the time is over."""
    end_s = time.perf_counter() + limit_s
    looked = sample(pid)
    while looked.files > files and time.perf_counter() < end_s:
        await asyncio.sleep(0.1)
        looked = sample(pid)
    return looked


def memory_slope(samples: Sequence[Sample]) -> Slope | None:
    """MB of resident memory an hour over the later half; None where the series is too short."""
    later = samples[second_half([each.at_s for each in samples]) :]
    if len(later) < 2 or later[-1].at_s - later[0].at_s < SHORT_S:
        return None
    hours = [each.at_s / 3600 for each in later]
    return slope(hours, [each.rss_bytes / MEGA for each in later])


def flat_memory(samples: Sequence[Sample]) -> Criterion:
    """Resident memory does not grow any more in the later half."""
    name = "memory flat: over the second half not surely rising by more than 2 %"
    line = memory_slope(samples)
    if line is None:
        return Criterion(name, "too short to tell", True)
    seen = (
        f"{line.per_unit:+.1f} ± {line.error:.1f} MB/h, {line.growth:+.2f} MB of {line.mean:.0f} MB"
    )
    return Criterion(name, seen, line.flat)


def constant(before: Sample, samples: Sequence[Sample], after: Sample) -> Criterion:
    """No more files and threads than before.

    Args:
        before: looked at when nothing was under way; so is `after`.
        samples: meanwhile. Pools start threads as they come to need them, so those of the first
            half count as being there before; files don't, as connections are among them.
        after: when all was over.
    """
    half = second_half([each.at_s for each in samples]) if len(samples) > 1 else 1
    threads = max(each.threads for each in (before, *samples[:half]))
    seen = f"files {before.files} → {after.files}, threads {threads} → {after.threads}"
    met = after.files <= before.files and after.threads <= threads
    return Criterion("open files as before, threads as in the first half", seen, met)


def series(samples: Sequence[Sample]) -> dict[str, list[float]]:
    """Samples as JSON values, times from the first one on."""
    return {
        "at_s": [round(each.at_s - samples[0].at_s, 2) for each in samples],
        "rss_mb": [round(each.rss_bytes / MEGA, 3) for each in samples],
        "files": [each.files for each in samples],
        "threads": [each.threads for each in samples],
    }
