"""A load in figures: throughput, latencies, statuses, and what the server used."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.load.loops import Load


@dataclass(frozen=True, slots=True)
class Summary:
    """A load in figures. Latencies are those of good answers; NaN where there are none.

    Attributes:
        seconds: length of the window.
        requests: in the window: by their end in a closed loop, by intended start in an open one.
        images_per_s: of good answers that ended in the window.
        statuses: requests by status, or by the reason why there was no answer.
        wrong: answers that the check found wrong, by what it said.
        late_p99_ms: how much later than intended requests were sent; large values mean that the
            generator and not the server was measured.
        generator_cpus: CPUs that this process used on average.
        server_cpus: CPUs that the server used on average; None where its pid was not given.
        server_cpu_ms_per_image: its CPU time for each good image.
        server_rss_mb, server_pss_mb: at the end of the window, 10^6 bytes.
    """

    seconds: float
    requests: int
    images_per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    statuses: dict[str, int]
    wrong: dict[str, int]
    late_p99_ms: float
    generator_cpus: float
    server_cpus: float | None
    server_cpu_ms_per_image: float | None
    server_rss_mb: float | None
    server_pss_mb: float | None


def summarize(load: Load) -> Summary:
    """The figures of a load's window."""
    begin_s, end_s = load.window_s
    seconds = end_s - begin_s
    ended = [each for each in load.outcomes if begin_s <= each.ended_s < end_s]
    counted = ended
    if load.open_loop:
        counted = [each for each in load.outcomes if begin_s <= each.intended_s < end_s]
    good_images = sum(each.images for each in ended if each.good)
    latencies = sorted(1e3 * (each.ended_s - each.intended_s) for each in counted if each.good)
    late = sorted(1e3 * (each.started_s - each.intended_s) for each in counted)
    server_cpu_s = load.server[1].cpu_s - load.server[0].cpu_s if load.server else None
    return Summary(
        seconds=seconds,
        requests=len(counted),
        images_per_s=good_images / seconds,
        p50_ms=percentile(latencies, 50),
        p95_ms=percentile(latencies, 95),
        p99_ms=percentile(latencies, 99),
        max_ms=percentile(latencies, 100),
        statuses=_count(str(e.status) if e.status else e.error or "none" for e in counted),
        wrong=_count(e.error for e in counted if e.status and e.error),
        late_p99_ms=percentile(late, 99),
        generator_cpus=load.generator_cpu_s / seconds,
        server_cpus=None if server_cpu_s is None else server_cpu_s / seconds,
        server_cpu_ms_per_image=(
            1e3 * server_cpu_s / good_images if server_cpu_s is not None and good_images else None
        ),
        server_rss_mb=load.server[1].rss_bytes / 1e6 if load.server else None,
        server_pss_mb=load.server[1].pss_bytes / 1e6 if load.server else None,
    )


def percentile(ascending: Sequence[float], percent: float) -> float:
    """The smallest value that so many percent of all do not exceed (nearest rank)."""
    if not ascending:
        return math.nan
    return ascending[max(0, math.ceil(len(ascending) * percent / 100) - 1)]


def _count(words: Iterable[str | None]) -> dict[str, int]:
    return dict(Counter(word for word in words if word).most_common())
