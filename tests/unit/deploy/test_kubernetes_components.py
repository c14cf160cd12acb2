"""The components of deploy/kubernetes, its folders for KServe, and the guide to all of them."""

import os
import re
from pathlib import Path

import pytest
import yaml

from server.settings import Settings
from tests.support.manifests import (
    FOLDER,
    Manifest,
    adapter_rules,
    build,
    built,
    one,
    pod_spec,
    quantity,
    server,
    variables,
)

COMPONENTS = sorted(each.name for each in (FOLDER / "components").iterdir())


def test_the_alerts_are_those_of_compose(repo_dir: Path) -> None:
    rules = yaml.safe_load((repo_dir / "docker/prometheus/alerts.yml").read_text())
    rule = one(built("overlays/example"), "PrometheusRule")
    assert rule["spec"] == rules, "prometheusrule.yaml says how to copy them"


def test_prometheus_scrapes_the_service() -> None:
    manifests = built("overlays/example")
    service, monitor = one(manifests, "Service"), one(manifests, "ServiceMonitor")
    selector = monitor["spec"]["selector"]["matchLabels"]
    assert selector
    assert selector.items() <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in {each["name"] for each in service["spec"]["ports"]}
    # The operator names the job for this label of the Service, and the alerts ask for that job.
    assert service["metadata"]["labels"][monitor["spec"]["jobLabel"]] == "detector"
    timeout_s, interval_s = (float(endpoint[k].rstrip("s")) for k in ("scrapeTimeout", "interval"))
    assert timeout_s <= interval_s
    # Windows of alerts, dashboard and adapter are made for this interval: four scrapes at least.
    compose = yaml.safe_load((FOLDER / "../../docker/prometheus/prometheus.yml").read_text())
    assert endpoint["interval"] == compose["global"]["scrape_interval"]
    for rule in adapter_rules():
        windows = re.findall(r"\[(\d+)m\]", rule["metricsQuery"])
        assert windows
        assert min(map(int, windows)) * 60 >= 4 * interval_s


def test_the_autoscaler_asks_for_what_the_adapter_gives() -> None:
    autoscaler = one(built("overlays/example"), "HorizontalPodAutoscaler")["spec"]
    deployment = one(built("overlays/example"), "Deployment")
    assert autoscaler["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"], "it would undo the autoscaler at each apply"
    asked = {each["pods"]["metric"]["name"] for each in autoscaler["metrics"]}
    assert asked == {rule["name"]["as"] for rule in adapter_rules()}
    assert "detector_queue_images" in asked
    waiting, busy = (
        quantity(each["pods"]["target"]["averageValue"]) for each in autoscaler["metrics"]
    )
    assert 0 < waiting < Settings.model_fields["max_queue_images"].default
    assert 0 < busy < 1
    assert 2 <= autoscaler["minReplicas"] < autoscaler["maxReplicas"]


def test_a_name_of_ones_own_changes_names_and_not_what_they_lead_to(tmp_path: Path) -> None:
    kustomization = {
        "namePrefix": "blue-",
        "namespace": "elsewhere",
        "labels": [{"pairs": {"team": "x"}, "includeSelectors": True}],
        "resources": ["overlays/gpu"],
        "components": [f"components/{name}" for name in COMPONENTS],
    }
    manifests = built_elsewhere(tmp_path, kustomization)
    names = {each["metadata"]["name"] for each in manifests if each["kind"] != "Namespace"}
    assert names == {"blue-detector"}
    deployment = one(manifests, "Deployment")
    target = one(manifests, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert target["name"] == deployment["metadata"]["name"]
    # The patches of components found it nevertheless, and other parts still lead to its pods.
    assert {"YOLO_FLA_MODEL", "YOLO_FLA_API_KEYS_FILE"} <= variables(server(deployment)).keys()
    assert "replicas" not in deployment["spec"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    service, monitor = one(manifests, "Service"), one(manifests, "ServiceMonitor")
    assert service["spec"]["selector"].items() <= labels.items()
    assert one(manifests, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"].items() <= (
        labels.items()
    )
    assert monitor["spec"]["selector"]["matchLabels"].items() <= (
        service["metadata"]["labels"].items()
    )
    assert service["metadata"]["labels"][monitor["spec"]["jobLabel"]] == "detector"


def test_a_pod_that_still_waits_for_its_image_is_not_called_down() -> None:
    (endpoint,) = one(built("overlays/example"), "ServiceMonitor")["spec"]["endpoints"]
    (rule,) = endpoint["relabelings"]
    assert (rule["sourceLabels"], rule["action"]) == (["__meta_kubernetes_pod_phase"], "drop")
    phases = ("Pending", "Running", "Succeeded", "Failed", "Unknown")
    assert [each for each in phases if re.fullmatch(rule["regex"], each)] == ["Pending"]


def test_components_add_their_part_and_leave_the_rest() -> None:
    plain, full = (one(built(f"overlays/{name}"), "Deployment") for name in ("gpu", "example"))
    before, after = variables(server(plain)), variables(server(full))
    assert after == before | {"YOLO_FLA_API_KEYS_FILE": "/keys/keys", "YOLO_FLA_MODEL": "/models"}
    mounts = {each["mountPath"]: each for each in server(full)["volumeMounts"]}
    volumes = {each["name"]: each for each in pod_spec(full)["volumes"]}
    keys = volumes[mounts["/keys"]["name"]]["secret"]
    assert keys["defaultMode"] == 0o440
    assert keys["optional"] is False
    assert "subPath" not in mounts["/keys"], "a renewed Secret would never be seen"
    (copying,) = pod_spec(full)["initContainers"]
    (target,) = [each["name"] for each in copying["volumeMounts"]]
    assert mounts["/models"]["name"] == target


def test_without_a_spare_gpu_a_rollout_frees_one_first(tmp_path: Path) -> None:
    kustomization = {
        "resources": ["overlays/gpu"],
        "components": ["components/no-spare-gpu"],
    }
    deployment = one(built_elsewhere(tmp_path, kustomization), "Deployment")
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 1, "maxSurge": 0}


def test_the_folder_that_the_guide_shows_can_be_built(repo_dir: Path, tmp_path: Path) -> None:
    guide = (repo_dir / "docs/kubernetes.md").read_text(encoding="utf-8")
    shown = re.findall(r"```yaml\n(.*?)```", guide, re.S)
    mine, model = (yaml.safe_load(each) for each in shown)
    kustomization = mine | {
        "resources": [each.replace("..", "overlays", 1) for each in mine["resources"]],
        "components": [each.removeprefix("../../") for each in model["components"]],
        "images": mine["images"] + model["images"],
    }
    manifests = built_elsewhere(tmp_path, kustomization)
    assert one(manifests, "Namespace")["metadata"]["name"] == "cells"
    pod = pod_spec(one(manifests, "Deployment"))
    images = [each["image"] for each in pod["containers"] + pod["initContainers"]]
    assert images == [
        "registry.example.com/yolov8-fla:0.1.0-cpu",
        "registry.example.com/my-model:3",
    ]


def test_the_guide_names_every_component(repo_dir: Path) -> None:
    guide = (repo_dir / "docs/kubernetes.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `([\w-]+)` \|", guide, re.M))
    assert named == set(COMPONENTS)


def built_elsewhere(folder: Path, kustomization: Manifest) -> list[Manifest]:
    """Builds a folder out of parts of ours, which kustomize takes by relative paths only."""
    parts = {
        kind: [os.path.relpath(FOLDER / each, folder.resolve()) for each in kustomization[kind]]
        for kind in ("resources", "components")
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization | parts))
    return build(folder)


@pytest.mark.parametrize("folder", ["kserve", "kserve/runtime"])
def test_kserve_is_told_the_protocol_and_finds_its_container(folder: str) -> None:
    service = one(built(folder), "InferenceService")
    assert service["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "Standard"
    predictor = pod_spec(service)
    if folder == "kserve":
        assert variables(server(service))["PROTOCOL"] == "v2"
        assert service["metadata"]["name"] == "yolov8n-fla-bccd"
        return
    runtime = one(built(folder), "ServingRuntime")
    model = predictor["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    (served,) = runtime["spec"]["supportedModelFormats"]
    assert model["modelFormat"] == {"name": served["name"], "version": served["version"]}
    assert served["autoSelect"] is False, "it would take ONNX files that it then refuses"
    assert variables(server(runtime))["YOLO_FLA_MODEL"] == "/mnt/models"
