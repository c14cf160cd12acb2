"""The dashboard, the alerts and their runbook as files: complete, consistent, of known parts."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.registry import Collector

from benchmarks.dashboard.queries import (
    ALERTS,
    DASHBOARD,
    alerts,
    panel_queries,
    panels,
)
from server.http.middleware import PROBES
from server.observability.gpu_metrics import GpuCollector
from tests.support.metrics import fresh
from tests.support.nvml import Driver

BOARD: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
PANELS = [panel for _, panel in panels(BOARD)]
RULES = [
    rule
    for group in yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
NAME = re.compile(r"\b(?:detector|process)_[a-z_]+\b")


def names(collector: Collector | CollectorRegistry) -> set[str]:
    """The names that series have, histograms' parts included."""
    found = set()
    for family in collector.collect():
        endings = {"counter": ["_total"], "info": ["_info"]}.get(family.type, [""])
        if family.type == "histogram":
            endings = ["_bucket", "_sum", "_count"]
        found |= {family.name + ending for ending in endings}
    return found


def exposed() -> set[str]:
    gpu = CollectorRegistry()
    gpu.register(GpuCollector(Driver()))
    process = CollectorRegistry()
    ProcessCollector(registry=process)
    return names(fresh().registry) | names(gpu) | names(process)


@pytest.mark.parametrize(
    "expr",
    [query.expr for query in panel_queries()] + [alert.expr for alert in alerts()],
)
def test_a_query_asks_for_metrics_that_the_server_has(expr: str) -> None:
    without_labels = re.sub(r'"[^"]*"', "", expr)
    assert set(NAME.findall(without_labels)) <= exposed()


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_explains_itself(panel: dict[str, Any]) -> None:
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    for target in panel["targets"]:
        assert "legendFormat" in target
        assert target["datasource"] == panel["datasource"]
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_panels_have_ids_of_their_own() -> None:
    rows = [panel for panel in BOARD["panels"] if panel["type"] == "row"]
    identifiers = [panel["id"] for panel in PANELS + rows]
    assert len(identifiers) == len(set(identifiers))


def test_every_query_but_that_for_alerts_is_about_the_servers_that_were_chosen() -> None:
    others = {query.panel for query in panel_queries() if 'instance=~"$instance"' not in query.expr}
    assert others == {"Alerts"}


def test_health_checks_and_scrapes_are_not_counted_as_requests() -> None:
    (query,) = (
        each for each in panel_queries() if (each.row, each.panel) == ("Traffic", "Requests")
    )
    (others,) = re.findall(r'route!~"([^"]+)"', query.expr)
    routes = [*PROBES, "/detect", "/v2/models/{name}/infer", "/v2/models/{name}", "/model"]
    assert {each for each in routes if re.fullmatch(others, each)} == PROBES


def test_only_the_gpu_panels_may_be_empty_and_they_are_folded_away() -> None:
    rows = {panel["title"]: panel for panel in BOARD["panels"] if panel["type"] == "row"}
    folded = {title for title, row in rows.items() if row["collapsed"]}
    assert len(folded) == 1
    gpu = {query.row for query in panel_queries() if "detector_gpu_" in query.expr}
    assert gpu == folded


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_happens_how_bad_it_is_and_where_to_read_on(
    rule: dict[str, Any], repo_dir: Path
) -> None:
    assert rule["labels"] in ({"severity": "critical"}, {"severity": "warning"})
    assert set(rule["annotations"]) == {"summary", "description", "runbook"}
    # What is not there has no name.
    named = rule["alert"] != "DetectorAbsent"
    assert ("{{ $labels.instance }}" in rule["annotations"]["summary"]) is named
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    headings = re.findall(r"^#+ (.*)$", (repo_dir / page).read_text(encoding="utf-8"), re.M)
    assert anchor == rule["alert"].lower()
    assert rule["alert"] in headings


def test_the_runbook_has_no_section_for_an_alert_that_is_gone(repo_dir: Path) -> None:
    page = (repo_dir / "docs" / "operations.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^#+ (Detector\w+)$", page, re.M)) == {rule["alert"] for rule in RULES}
