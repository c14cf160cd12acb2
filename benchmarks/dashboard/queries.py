"""What the dashboard and the alerts ask Prometheus, read from the files that are shipped."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = ROOT / "docker" / "grafana" / "dashboards" / "detector.json"
ALERTS = ROOT / "docker" / "prometheus" / "alerts.yml"

_BRACKETS = {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'')
_OPERATOR = re.compile(r"==|!=|<=|>=|<|>|\b(?:and|or|unless)\b")
_MATCHING = re.compile(r"\s*(?:bool\b)?\s*(?:(?:on|ignoring)\s*\([^)]*\))?")
_NUMBER = re.compile(r"[-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?")


@dataclass(frozen=True, slots=True)
class PanelQuery:
    """One query of one panel.

    Attributes:
        row: the title of the panel's row; empty above the first.
        panel: its title.
        legend: what Grafana calls the series.
        unit: Grafana's name of it.
        expr: PromQL with Grafana's variables.
    """

    row: str
    panel: str
    legend: str
    unit: str
    expr: str

    def filled(self, instances: Sequence[str], rate_interval: str) -> str:
        """PromQL as Grafana sends it with these servers chosen."""
        chosen = "|".join(re.escape(each).replace("\\", "\\\\") for each in instances)
        filled = self.expr.replace("$instance", f"({chosen})")
        filled = filled.replace("$__rate_interval", rate_interval)
        assert "$" not in filled, f"{self.panel} has a variable that is not known: {filled}"
        return filled


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert; `operands` are what it compares: PromQL that answers where it is silent, too."""

    name: str
    expr: str
    operands: tuple[str, ...]


def panels(dashboard: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every panel that is no row, with the title of its row, in the order of the page."""
    row = ""
    for each in dashboard["panels"]:
        if each["type"] != "row":
            yield row, each
            continue
        row = each["title"]
        for inner in each["panels"]:  # of a collapsed row
            yield row, inner


def panel_queries(path: Path = DASHBOARD) -> list[PanelQuery]:
    """All queries of a dashboard, in the order of the page."""
    dashboard = json.loads(path.read_text(encoding="utf-8"))
    return [
        PanelQuery(
            row,
            panel["title"],
            target["legendFormat"],
            panel["fieldConfig"]["defaults"]["unit"],
            target["expr"],
        )
        for row, panel in panels(dashboard)
        for target in panel["targets"]
    ]


def alerts(path: Path = ALERTS) -> list[Alert]:
    """All alerts of a file of rules."""
    groups = yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
    return [
        Alert(rule["alert"], rule["expr"].strip(), tuple(operands(rule["expr"])))
        for group in groups
        for rule in group["rules"]
    ]


def operands(expr: str) -> list[str]:
    """What an expression compares or combines at its top level, numbers left out.

    `sum(rate(a[5m])) / b > 0.05 and on (c) d == 1` has the operands `sum(rate(a[5m])) / b` and `d`.
    An alert that is silent has no answer; the operands have, unless a metric is missing.

    Raises:
        ValueError: nothing is compared, so there is no telling what should have an answer.
    """
    # Blanks for strings and for what is in brackets: of equal length, so that places stay.
    plain, depth = list(_STRING.sub(lambda found: " " * len(found[0]), expr)), 0
    for place, character in enumerate(plain):
        depth += _BRACKETS.get(character, 0)
        if depth or character in _BRACKETS:
            plain[place] = " "
    found, begin = [], 0
    for operator in _OPERATOR.finditer("".join(plain)):
        found.append(expr[begin : operator.start()].strip())
        matching = _MATCHING.match(expr, operator.end())
        begin = matching.end() if matching else operator.end()
    if not found:
        raise ValueError(f"{expr!r} compares nothing at its top level")
    found.append(expr[begin:].strip())
    return [each for each in found if not _NUMBER.fullmatch(each)]
