"""Prometheus scrapes a running server and answers what the dashboard and the alerts ask."""

import math
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, start_http_server

from benchmarks.dashboard.prometheus import Series
from benchmarks.dashboard.queries import ALERTS, Alert, PanelQuery, alerts, panel_queries
from benchmarks.dashboard.watch import RATE_INTERVAL, Watched, watched
from server.observability.gpu_metrics import GpuCollector
from tests.support.nvml import Driver

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is not installed (it comes with Prometheus)"
)
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is not installed"
)


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    assert PROMTOOL is not None
    return subprocess.run(
        [PROMTOOL, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


@needs_promtool
def test_promtool_finds_nothing_wrong_with_the_configuration_and_the_alerts() -> None:
    checked = promtool("check", "config", ALERTS.parent / "prometheus.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(alerts())} rules found" in checked.stdout


@needs_promtool
def test_each_alert_fires_on_what_it_is_for_and_is_silent_otherwise() -> None:
    tested = promtool("test", "rules", ALERTS.parent / "alerts_test.yml")
    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.fixture(scope="module")
def gpu_target() -> Iterator[str]:
    """The real collector of GPU metrics, asking a driver that is made by hand, as a target."""
    registry = CollectorRegistry()
    registry.register(GpuCollector(Driver()))
    server, thread = start_http_server(0, "127.0.0.1", registry)
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def seen(gpu_target: str) -> Iterator[Watched]:
    """The default weights, served and asked for some seconds, scraped twice a second."""
    repo = Path(__file__).resolve().parents[3]
    images = [path.read_bytes() for path in sorted((repo / "samples").glob("*.jpg"))]
    with watched(
        repo / "weights",
        images,
        clients=4,
        seconds=6,
        interval_s=0.5,
        others=[gpu_target],
    ) as seen:
        yield seen


def with_values(found: list[Series]) -> list[Series]:
    return [each for each in found if math.isfinite(each.value)]


@needs_prometheus
@pytest.mark.slow
@pytest.mark.parametrize("query", panel_queries(), ids=lambda query: f"{query.panel}: {query.expr}")
def test_every_query_of_the_dashboard_has_an_answer(
    seen: Watched, gpu_target: str, query: PanelQuery
) -> None:
    expr = query.filled([seen.server, gpu_target], RATE_INTERVAL)
    assert with_values(seen.prometheus.ask(expr, seen.ended_s)), expr


@needs_prometheus
@pytest.mark.slow
@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert.name)
def test_what_an_alert_compares_is_there(seen: Watched, alert: Alert) -> None:
    for operand in alert.operands:
        assert with_values(seen.prometheus.ask(operand, seen.ended_s)), operand


@needs_prometheus
@pytest.mark.slow
def test_prometheus_runs_every_alert_without_an_error(seen: Watched) -> None:
    (group,) = seen.prometheus.get("rules")["groups"]
    health = {rule["name"]: (rule["health"], rule.get("lastError")) for rule in group["rules"]}
    assert health == {alert.name: ("ok", None) for alert in alerts()}


@needs_prometheus
@pytest.mark.slow
def test_the_servers_to_choose_from_are_those_that_serve(seen: Watched) -> None:
    chosen = seen.prometheus.get("label/instance/values", match="detector_state")
    assert chosen == [seen.server]


@needs_prometheus
@pytest.mark.slow
def test_prometheus_counted_what_the_clients_saw(seen: Watched) -> None:
    answered = [each for each in seen.load.outcomes if each.status == 200]
    broken = [each for each in seen.load.outcomes if each.name == "broken"]
    assert answered
    assert broken
    (ok,) = seen.prometheus.ask('detector_images_total{outcome="ok"}')
    (unsupported,) = seen.prometheus.ask('detector_rejected_total{reason="unsupported_image"}')
    assert ok.value == len(answered) + 1  # the first, which showed that it is ready
    assert unsupported.value == len(broken)
