"""What the manifests of deploy/kubernetes ask of the server, asked of one that runs."""

import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.manifests import (
    FOLDER,
    adapter_rules,
    build,
    one,
    pod_spec,
    probes,
    server,
    variables,
)
from tests.support.processes import ready
from tests.support.serving import one_cell, served

SERVING = [("overlays/cpu", "Deployment"), ("kserve", "InferenceService")]
SERVING += [("kserve/runtime", "ServingRuntime")]


@pytest.mark.anyio
async def test_probes_and_scrapes_are_answered_though_keys_are_asked_for(artifact: Path) -> None:
    monitor = one(build(FOLDER / "overlays/example"), "ServiceMonitor")
    paths = {endpoint["path"] for endpoint in monitor["spec"]["endpoints"]}
    for folder, kind in SERVING:
        container = server(one(build(FOLDER / folder), kind))
        paths |= {probe["httpGet"]["path"] for _, probe in probes(container)}
    assert len(paths) == 5
    async with served(artifact, api_keys=("secret",)) as running:
        answers = {path: (await running.client.get(path)).status_code for path in paths}
        assert answers == dict.fromkeys(paths, 200)


@pytest.mark.anyio
async def test_the_adapter_asks_for_metrics_that_the_server_has(artifact: Path) -> None:
    queried = {
        name for rule in adapter_rules() for name in re.findall(r"detector_\w+", expanded(rule))
    }
    assert queried == {
        "detector_queue_images",
        "detector_inference_busy_seconds_total",
        "detector_instances",
    }
    async with served(artifact) as running:
        exposed = (await running.client.get("/metrics")).text
    assert queried <= set(re.findall(r"^(detector_\w+)", exposed, re.M))


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_the_adapter_s_queries_give_each_pod_its_own_value(tmp_path: Path) -> None:
    rules = [{"record": each["name"]["as"], "expr": expanded(each)} for each in adapter_rules()]
    # Two pods for three minutes: in one 12 images wait and 1.5 of two instances run; one is idle.
    samples = {
        'detector_queue_images{namespace="n",pod="busy"}': "12x12",
        'detector_queue_images{namespace="n",pod="idle"}': "0x12",
        'detector_inference_busy_seconds_total{namespace="n",pod="busy"}': "0+22.5x12",
        'detector_inference_busy_seconds_total{namespace="n",pod="idle"}': "7x12",
        'detector_instances{namespace="n",pod="busy"}': "2x12",
        'detector_instances{namespace="n",pod="idle"}': "2x12",
        'detector_queue_images{namespace="other",pod="busy"}': "99x12",
    }
    expected = {"detector_queue_images": (12, 0), "detector_busy_share": (0.75, 0)}
    assert {each["record"] for each in rules} == expected.keys()
    test = {
        "rule_files": [],
        "tests": [
            {
                "interval": "15s",
                "input_series": [{"series": k, "values": v} for k, v in samples.items()],
                "promql_expr_test": [
                    {
                        "expr": rule["expr"],
                        "eval_time": "3m",
                        "exp_samples": [
                            {"labels": f'{{pod="{pod}"}}', "value": value}
                            for pod, value in zip(
                                ("busy", "idle"), expected[rule["record"]], strict=True
                            )
                        ],
                    }
                    for rule in rules
                ],
            }
        ],
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(test))
    tested = subprocess.run(
        ["promtool", "test", "rules", str(tmp_path / "test.yaml")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.mark.slow
def test_a_pod_that_ends_serves_through_its_pause_and_then_drains(
    repo_dir: Path, artifact: Path
) -> None:
    """As the kubelet does it: the hook, then SIGTERM, and all of it within the grace period."""
    deployment = one(build(FOLDER / "overlays/cpu"), "Deployment")
    container = server(deployment)
    environment = variables(container) | {"YOLO_FLA_HOST": "127.0.0.1"}
    with ready(repo_dir, artifact, **environment) as (process, client):
        url = client.base_url
        began = time.monotonic()
        hook = subprocess.Popen(container["lifecycle"]["preStop"]["exec"]["command"])
        statuses = set()
        while hook.poll() is None:  # each on a connection of its own
            answer = httpx.post(
                url.join("/detect"), content=one_cell(), headers={"Content-Type": "image/png"}
            )
            statuses |= {answer.status_code, httpx.get(url.join("/health/ready")).status_code}
        assert hook.returncode == 0
        assert statuses == {200}
        assert process.stop() == 0
        assert time.monotonic() - began < pod_spec(deployment)["terminationGracePeriodSeconds"]
        with pytest.raises(httpx.ConnectError):
            httpx.get(url.join("/health/ready"))


def test_the_init_container_s_command_copies_a_model_to_where_it_is_served(
    repo_dir: Path, artifact: Path, tmp_path: Path
) -> None:
    deployment = one(build(FOLDER / "overlays/example"), "Deployment")
    (copying,) = pod_spec(deployment)["initContainers"]
    (tmp_path / "models").mkdir()
    (tmp_path / "target").mkdir()
    shutil.copy(artifact, tmp_path / "models")
    command = shlex.join(copying["command"])
    assert "/models/" in command
    assert "/target/" in command
    here = command.replace("/models/", f"{tmp_path}/models/")
    subprocess.run(shlex.split(here.replace("/target/", f"{tmp_path}/target/")), check=True)
    with ready(repo_dir, tmp_path / "target") as (_, client):
        assert client.get("/health").json()["status"] == "ready"


def expanded(rule: dict[str, Any]) -> str:
    """The query as the adapter asks it for the pods of one namespace."""
    series, _, _ = rule["seriesQuery"].partition("{")
    assert re.fullmatch(rule["name"]["matches"], series)
    query: str = rule["metricsQuery"].replace("<<.Series>>", series)
    query = query.replace("<<.LabelMatchers>>", 'namespace="n",pod=~"busy|idle"')
    return query.replace("<<.GroupBy>>", "pod")
