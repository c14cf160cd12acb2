import re
import shutil
import subprocess
from pathlib import Path
from typing import get_args

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.api.schemas import Health
from server.observability.metrics import REQUEST_SECONDS, STAGES, STATES, Metrics, ServerStatus
from tests.support.metrics import fresh


def used() -> Metrics:
    metrics = fresh("queue_full", queue_images=5)
    metrics.requests.labels("/detect", "200").inc()
    metrics.set_model(name="n", version="v", precision="fp32", provider="P", device="cpu")
    return metrics


def families(metrics: Metrics) -> dict[str, dict[frozenset[tuple[str, str]], float]]:
    text = metrics.exposition().decode()
    return {
        family.name: {frozenset(s.labels.items()): s.value for s in family.samples}
        for family in text_string_to_metric_families(text)
    }


def test_gauges_report_the_status_of_the_moment() -> None:
    metrics = fresh()
    for waiting in (3, 4):
        status = ServerStatus("ready", waiting, 96, 10 * waiting, 2**20, 2, 1)
        metrics.observe(lambda: status)  # noqa: B023  # collected before the next
        exposed = families(metrics)
        for name in status._fields[1:]:
            assert exposed[f"detector_{name}"] == {frozenset(): getattr(status, name)}


def test_one_state_is_1_and_it_is_the_one_of_now() -> None:
    for state in STATES:
        exposed = families(fresh(state=state))["detector_state"]
        assert {dict(labels)["state"] for labels in exposed} == set(STATES)
        assert [dict(labels)["state"] for labels, value in exposed.items() if value] == [state]


def test_the_metrics_know_every_state_that_health_reports() -> None:
    assert set(STATES) == set(get_args(Health.model_fields["status"].annotation))


def test_promtool_finds_nothing_wrong() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (it comes with Prometheus)")
    metrics = used()
    metrics.stage_seconds["decode"].observe(0.1)
    checked = subprocess.run(
        [promtool, "check", "metrics"],
        input=metrics.exposition(),
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_stages_statuses_and_rejections_start_at_zero() -> None:
    exposed = families(fresh("queue_full"))
    reasons = ("queue_full", "too_many_connections")
    assert exposed["detector_rejected"] == {frozenset({("reason", each)}): 0 for each in reasons}
    zero = {frozenset({("outcome", outcome)}): 0 for outcome in ("ok", "failed")}
    assert exposed["detector_reloads"] == zero
    stages = {dict(s).get("stage") for s in exposed["detector_stage_seconds"]}
    assert stages == set(STAGES)
    statuses = {dict(s).get("status") for s in exposed["detector_request_seconds"]}
    assert statuses == {"200", "499", "500", "503", "504"}


def test_the_latency_that_an_alert_names_is_a_bound_of_the_histogram(repo_dir: Path) -> None:
    alerts = (repo_dir / "docker" / "prometheus" / "alerts.yml").read_text(encoding="utf-8")
    (named,) = re.findall(r"histogram's bounds \((.*)\)", alerts)
    (threshold,) = re.findall(r"histogram_quantile.*\n +> (.*)", alerts)
    assert {float(bound) for bound in named.split(", ")} <= set(REQUEST_SECONDS)
    assert float(threshold) in REQUEST_SECONDS


def test_two_apps_do_not_share_their_counts() -> None:
    first, second = used(), used()
    first.requests.labels("/detect", "200").inc()
    series = frozenset({("route", "/detect"), ("status", "200")})
    assert families(first)["detector_requests"][series] == 2
    assert families(second)["detector_requests"][series] == 1
