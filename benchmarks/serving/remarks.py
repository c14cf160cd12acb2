"""What a reader of the tables should know of how they came about, told by the rows themselves."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

Row = Mapping[str, Any]
IDLE = 0.75  # of the CPUs; a saturated server that uses less did not get at the rest
UNEVEN = 1.25  # a median wait so many times the mean one is not that of clients served alike


def remarks(rows: Sequence[Row], cases: Sequence[Row], cpus: int) -> list[str]:
    """Paragraphs, each only where the rows show what it says.

    Args:
        rows: of all rounds; those that failed have no figures.
        cases: with the `name` and the number of `clients` of each.
        cpus: of the machine.
    """
    many = {case["name"]: case["clients"] for case in cases if case["clients"] > 1}
    saturated = [row for row in rows if row["case"] in many and _figure(row, "images_per_s")]
    found = [drift(rows), idle(saturated, cpus), uneven(saturated, many)]
    return [each for each in found if each]


def drift(rows: Sequence[Row]) -> str:
    """How much the CPU time of one and the same work differed between rounds."""
    worst, who = 1.0, ("", "", 0.0, 0.0)
    which = itemgetter("case", "name")
    for (case, name), same in groupby(sorted(rows, key=which), key=which):
        costs = [cost for row in same if (cost := _figure(row, "server_cpu_ms_per_image"))]
        if costs and max(costs) / min(costs) > worst:
            worst, who = max(costs) / min(costs), (case, name, min(costs), max(costs))
    if worst < UNEVEN:
        return ""
    case, name, least, most = who
    return (
        f"The CPUs were not equally fast all the time: the same work took `{name}` "
        f"(case `{case}`) {least:.1f} ms of CPU an image in one round and {most:.1f} in another, "
        f"{worst:.2f} times as much. Windows of one round are minutes apart, so a ratio of a "
        "single round carries that, too, and the spread of its three values says how much."
    )


def idle(rows: Sequence[Row], cpus: int) -> str:
    """Who left CPUs idle under saturation, in how many windows."""
    by_name = _windows(rows, lambda row: (_figure(row, "server_cpus") or math.inf) < IDLE * cpus)
    if not by_name:
        return ""
    return (
        f"Under {IDLE:.0%} of the CPUs were used, though all clients waited, by {by_name}. Two "
        "workers that share a port (FastAPI's) get there when most connections happen to be "
        "accepted by one of them, where they stay; ultralytics (`tutorial`) gives torch one thread "
        "less than there are CPUs."
    )


def uneven(rows: Sequence[Row], clients: Mapping[str, int]) -> str:
    """Who served some clients sooner than others, in how many windows."""

    def is_uneven(row: Row) -> bool:
        mean_ms = 1e3 * clients[row["case"]] / float(row["images_per_s"])
        return (_figure(row, "p50_ms") or 0.0) > UNEVEN * mean_ms

    by_name = _windows(rows, is_uneven)
    if not by_name:
        return ""
    return (
        "With a fixed number of clients the mean wait is clients / images/s. A median far above it "
        f"(over {UNEVEN:g} times) says that clients were not served alike, as where one worker has "
        f"more of the connections than the other: {by_name}."
    )


def _windows(rows: Sequence[Row], is_so: Callable[[Row], bool]) -> str:
    """Contestants by name with the share of their windows in which something is so."""
    name = itemgetter("name")
    shares = []
    for who, group in groupby(sorted(rows, key=name), key=name):
        windows = [row for row in group if _figure(row, "requests")]
        if count := sum(is_so(row) for row in windows):
            shares.append(f"{who} in {count} of {len(windows)} windows")
    return ", ".join(shares)


def _figure(row: Row, name: str) -> float | None:
    value = row.get(name)
    if isinstance(value, float | int) and math.isfinite(value) and value > 0:
        return float(value)
    return None
