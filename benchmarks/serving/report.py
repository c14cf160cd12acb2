"""From the rows of all rounds to ratios, tables and a page.

A ratio is the median over the rounds of the ratio within each round: what else the machine does
slows all who take part in a round.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.attention.page import wrapped
from benchmarks.serving.remarks import remarks

Row = Mapping[str, Any]
COMMAND = ".venv/bin/python -m benchmarks.serving"
PEERS = ("mosec", "LitServe", "FastAPI", "tutorial")


@dataclass(frozen=True, slots=True)
class Claim:
    """A ratio that is wanted, and what was measured.

    Attributes:
        text: of what to what.
        wanted: the bound.
        at_most: the ratio must not be over it (of latencies), else not under it (of rates).
        rounds: the ratio in each round; empty where it was not measured.
    """

    text: str
    wanted: float
    at_most: bool
    rounds: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Median over the rounds; NaN where there are none."""
        return statistics.median(self.rounds) if self.rounds else math.nan

    @property
    def holds(self) -> bool:
        """False where it was not measured."""
        return self.ratio <= self.wanted if self.at_most else self.ratio >= self.wanted


def claims(rows: Sequence[Row]) -> list[Claim]:
    """All ratios that the benchmark is there for."""
    rate, wait = "images_per_s", "p50_ms"

    def against(
        case: str, name: str, other: str | None, figure: str, wanted: float, text: str
    ) -> Claim:
        other = other or best_peer(rows, case, figure)
        shown = text.format(best=other or "no peer")
        ratios = ratio_by_round(rows, case, name, other, figure) if other else ()
        return Claim(shown, wanted, figure == wait, tuple(ratios))

    return [
        against("saturated", "ours", "limit", rate, 1.0, "saturated: fp32 to the limit"),
        against(
            "saturated", "ours, int8", "limit, int8", rate, 1.0, "saturated: int8 to the limit"
        ),
        against("saturated", "ours", None, rate, 1.05, "saturated: fp32 to the best peer ({best})"),
        against("wide", "ours", None, rate, 1.4, "16:9: fp32 to the best peer ({best})"),
        against(
            "saturated", "ours, int8", None, rate, 1.6, "saturated: int8 to the best peer ({best})"
        ),
        against("wide", "ours, int8", None, rate, 2.4, "16:9: int8 to the best peer ({best})"),
        against(
            "many_boxes", "ours", None, rate, 1.0, "conf=0.001: fp32 to the best peer ({best})"
        ),
        against("lone", "ours", "limit", wait, 1.15, "lone client: fp32 median to in-process"),
        against(
            "lone",
            "ours, int8",
            "limit, int8",
            wait,
            1.15,
            "lone client: int8 median to in-process",
        ),
        against(
            "lone", "ours", None, wait, 1.0, "lone client: fp32 median to the best peer ({best})"
        ),
    ]


def best_peer(rows: Sequence[Row], case: str, figure: str) -> str | None:
    """The peer with the best median; None where none took part."""
    medians = {
        name: statistics.median(values)
        for name in PEERS
        if (values := list(by_round(rows, case, name, figure).values()))
    }
    if not medians:
        return None
    choose: Callable[..., str] = min if figure == "p50_ms" else max
    return choose(medians, key=medians.__getitem__)


def ratio_by_round(
    rows: Sequence[Row], case: str, name: str, other: str, figure: str
) -> list[float]:
    """One contestant's figure over another's in each round that has both."""
    mine, theirs = by_round(rows, case, name, figure), by_round(rows, case, other, figure)
    return [mine[i] / theirs[i] for i in mine if i in theirs]


def by_round(rows: Sequence[Row], case: str, name: str, figure: str) -> dict[int, float]:
    """A contestant's figure by round, where it was measured."""
    return {
        row["round"]: row[figure]
        for row in rows
        if row["case"] == case and row["name"] == name and _is_number(row.get(figure))
    }


def page(figures: Mapping[str, Any]) -> str:
    """The Markdown page.

    Args:
        figures: as the command writes them: `metadata`, `cases`, `rows`, `curve`.
    """
    about, rows = figures["metadata"], figures["rows"]
    parts = [
        "# How fast the server is, and against what",
        f"This page is written by `{COMMAND} --rounds {about['rounds']} --clients "
        f"{about['clients']} --seconds {about['seconds']:g} --images DATA/bccd/images/val`; its "
        "figures are what that command measured, raw in "
        "[evidence/serving.json](evidence/serving.json).",
        f"{about['cpu']}, {about['cpus']} CPUs, {about['date']}. Rounds: {about['rounds']}, in "
        f"which all take turns, one at a time; each window {about['seconds']:g} s after "
        f"{about['warm_s']:g} s of warm-up. {about['images']} images. The load generator "
        f"shares the CPUs; it used at most {_most(rows, 'generator_cpus'):.2f} of one. Figures "
        "are medians over the rounds, some with the lowest and the highest; ratios are taken "
        "within a round.",
        "The limit is the server's own decode, letterbox, inferences and NMS in one process "
        "without HTTP, in its best arrangement. It is the limit of one process: servers of "
        "several, such as mosec's two workers, share neither Python's lock nor an allocator, and "
        "can pass it. mosec, LitServe and FastAPI serve that same code "
        "around the same file, tuned: a one-thread worker for each CPU where many clients ask, "
        "one worker with all threads for a lone client. `tutorial` is FastAPI around ultralytics "
        "and the checkpoint. Each answer's number of boxes is compared with the pipeline's.",
        "![images a second and latency](evidence/serving.png)",
        "## Ratios",
        claims_table(claims(rows)),
        *remarks(rows, figures["cases"], about["cpus"]),
    ]
    for case in figures["cases"]:
        parts += [f"## {case['title'].capitalize()}", f"Shapes: {case['shapes']}."]
        parts += [case_table([row for row in rows if row["case"] == case["name"]])]
    if figures["curve"]:
        parts += [
            "## Latency at a given rate",
            "Open loop: requests come at random times (Poisson) whatever became of those before, "
            "and wait from the moment they should have been sent. 640×480. Offered is the rate of "
            f"that chance; in a window of {about['seconds']:g} s more or fewer come. Answered are "
            "those whose answer ended within the window, so that the last of those that came may "
            "be missing.",
            curve_table(figures["curve"]),
        ]
    return "\n\n".join(wrapped(part) for part in parts) + "\n"


def claims_table(found: Sequence[Claim]) -> str:
    """What is wanted and what was measured."""
    lines = ["| | wanted | measured | rounds |", "|---|---|---|---|"]
    for claim in found:
        rounds = ", ".join(f"{ratio:.2f}" for ratio in claim.rounds)
        verdict = "" if claim.holds or not claim.rounds else " (missed)"
        measured = f"{claim.ratio:.2f}{verdict}" if claim.rounds else "not measured"
        bound = f"{'≤' if claim.at_most else '≥'} {claim.wanted:g}"
        lines.append(f"| {claim.text} | {bound} | {measured} | {rounds} |")
    return "\n".join(lines)


def case_table(rows: Sequence[Row]) -> str:
    """One line for each contestant of a case."""
    head = "images/s|p50 ms|p95 ms|p99 ms|CPU ms an image|memory MB|start s|not right"
    lines = [
        f"| | arrangement | {head.replace('|', ' | ')} |",
        "|" + "---|" * (3 + head.count("|")),
    ]
    for name in dict.fromkeys(row["name"] for row in rows):
        mine = [row for row in rows if row["name"] == name]
        if all("failed" in row for row in mine):
            lines.append(f"| {name} | did not start |" + " |" * (1 + head.count("|")))
            continue
        cells = [
            _spread(mine, "images_per_s", 1),
            *(_spread(mine, f"{each}_ms", 0) for each in ("p50", "p95", "p99")),
            _median(mine, "server_cpu_ms_per_image", 1),
            _median(mine, "server_pss_mb", 0),
            _median(mine, "start_s", 1),
            _faults(mine),
        ]
        lines.append(f"| {name} | {mine[-1]['arrangement']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def curve_table(rows: Sequence[Row]) -> str:
    """One line for each rate."""
    lines = [
        "| | offered images/s | came | answered | p50 ms | p95 ms | p99 ms | statuses "
        "| sent late, p99 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        statuses = ", ".join(f"{count} × {status}" for status, count in row["statuses"].items())
        waits = [_median([row], f"{each}_ms", 0) for each in ("p50", "p95", "p99")]
        lines.append(
            f"| {row['name']} | {row['offered_per_s']:.1f} "
            f"| {row['requests'] / row['seconds']:.1f} | {row['images_per_s']:.1f} "
            f"| {' | '.join(waits)} | {statuses} | {_median([row], 'late_p99_ms', 1)} ms |"
        )
    return "\n".join(lines)


def _is_number(value: object) -> bool:
    return isinstance(value, float | int) and math.isfinite(value)


def _values(rows: Sequence[Row], figure: str) -> list[float]:
    return [row[figure] for row in rows if _is_number(row.get(figure))]


def _most(rows: Sequence[Row], figure: str) -> float:
    return max(_values(rows, figure), default=0.0)


def _median(rows: Sequence[Row], figure: str, digits: int) -> str:
    values = _values(rows, figure)
    return f"{statistics.median(values):.{digits}f}" if values else ""


def _spread(rows: Sequence[Row], figure: str, digits: int) -> str:
    values = _values(rows, figure)
    if len(values) < 2:
        return _median(rows, figure, digits)
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _faults(rows: Sequence[Row]) -> str:
    """Requests without an answer of 200, and answers with another number of boxes."""
    asked = sum(row.get("requests", 0) for row in rows)
    failed = sum(
        count
        for row in rows
        for status, count in row.get("statuses", {}).items()
        if status != "200"
    )
    wrong = sum(sum(row.get("wrong", {}).values()) for row in rows)
    return f"{failed + wrong} of {asked}" if asked else ""
