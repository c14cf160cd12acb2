"""What a scenario has to show, what was seen, and both as a table and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Criterion:
    """One thing that has to hold.

    Attributes:
        name: what, with its limit.
        seen: the value, in words.
        met: whether it holds.
    """

    name: str
    seen: str
    met: bool


@dataclass(frozen=True, slots=True)
class Report:
    """A scenario's end.

    Attributes:
        scenario: its name.
        criteria: what it had to show; none where it only measures.
        figures: values of JSON, by name; raw series included.
        shown: names of the figures for the table.
    """

    scenario: str
    criteria: list[Criterion]
    figures: dict[str, Any] = field(default_factory=dict)
    shown: tuple[str, ...] = ()

    @property
    def met(self) -> bool:
        """All criteria are."""
        return all(criterion.met for criterion in self.criteria)


def table(report: Report) -> str:
    """The criteria and the chosen figures, as Markdown."""
    rows = [f"## {report.scenario}: {'met' if report.met else 'NOT MET'}", ""]
    rows += ["| must hold | seen | |", "|---|---|---|"]
    rows += [f"| {c.name} | {c.seen} | {'yes' if c.met else '**NO**'} |" for c in report.criteria]
    if report.shown:
        rows += ["", "| figure | |", "|---|---|"]
        rows += [f"| {name} | {shown(report.figures[name])} |" for name in report.shown]
    return "\n".join(rows)


def shown(value: object) -> str:
    """A figure for people: numbers with four digits."""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {shown(each)}" for key, each in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(shown(each) for each in value) or "none"
    return str(value)


def as_json(report: Report) -> dict[str, Any]:
    """The report as JSON values."""
    return {
        "scenario": report.scenario,
        "met": report.met,
        "criteria": [asdict(criterion) for criterion in report.criteria],
        "figures": report.figures,
    }


def none_of(name: str, found: Sequence[str], most_shown: int = 5) -> Criterion:
    """Holds when nothing was found; shows how much was, and the first of it."""
    if not found:
        return Criterion(name, "none", True)
    first = "; ".join(found[:most_shown]).replace("|", "/").replace("\n", " ")
    return Criterion(name, f"{len(found)}: {first}", False)
