"""The metrics of one process as plain values, and those of several processes as one.

| of | what the whole server's value is |
|---|---|
| a counter, a histogram | the sum over the engine process and all workers, those that died included
|
| a gauge of `SUMMED` | the sum over the workers that run |
| any other gauge, `process_*` | the engine process' own |
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

# Each sample: name, labels, value.
Sample: TypeAlias = tuple[str, dict[str, str], float]
# Each family: name, type, help, samples.
Family: TypeAlias = tuple[str, str, str, list[Sample]]
Snapshot: TypeAlias = list[Family]

ADDED = ("counter", "histogram")
SUMMED = frozenset(
    {
        "detector_inflight_requests",
        "detector_inflight_body_bytes",
        "detector_max_inflight_body_bytes",
    }
)
_PROCESS = "process_"


def snapshot(registry: CollectorRegistry) -> Snapshot:
    """All metrics of a registry, now."""
    return [
        (
            family.name,
            family.type,
            family.documentation,
            [(each.name, dict(each.labels), each.value) for each in family.samples],
        )
        for family in registry.collect()
    ]


def worker_part(families: Iterable[Family]) -> Snapshot:
    """What counts of a worker's metrics; the rest is the engine process' to say."""
    return [each for each in families if _is_added(each) or each[0] in SUMMED]


def counted(families: Iterable[Family]) -> Snapshot:
    """What is left of a worker that has ended."""
    return [each for each in families if _is_added(each)]


def merged(own: Sequence[Family], workers: Iterable[Sequence[Family]]) -> Snapshot:
    """The whole server's metrics.

    Args:
        own: of the engine process; it has every family.
        workers: of each worker, as `worker_part` or `counted` gives them.
    """
    totals: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    parts = [[each for each in own if _is_added(each)], *workers]
    for name, _, _, samples in (family for part in parts for family in part):
        total = totals.setdefault(name, {})
        for sample, labels, value in samples:
            key = (sample, tuple(labels.items()))
            total[key] = total.get(key, 0.0) + value
    return [
        (name, kind, text, _samples(totals[name]) if name in totals else list(samples))
        for name, kind, text, samples in own
    ]


def exposition(families: Iterable[Family]) -> bytes:
    """Families in the Prometheus text format."""
    registry = CollectorRegistry()
    registry.register(_Given(families))
    return generate_latest(registry)


class _Given(Collector):
    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        for name, kind, text, samples in self._families:
            family = Metric(name, text, kind)
            for sample, labels, value in samples:
                family.add_sample(sample, labels, value)
            yield family


def _is_added(family: Family) -> bool:
    return family[1] in ADDED and not family[0].startswith(_PROCESS)


def _samples(
    total: dict[tuple[str, tuple[tuple[str, str], ...]], float],
) -> list[Sample]:
    return [(name, dict(labels), value) for (name, labels), value in total.items()]
