"""The manifests of deploy/kubernetes: what they build, and that they fit the server and each other.

No cluster has seen them here. Kubernetes' own objects are held against its schemas; of the
Prometheus operator's and KServe's, the parts that Kubernetes defines, and what the server needs.
"""

import re
import tomllib
from pathlib import Path

import kubernetes_validate
import pytest

from server.http.server import LAST_RESORT_S
from server.settings import ENV_PREFIX, Settings
from tests.support.manifests import (
    Manifest,
    built,
    one,
    pod_spec,
    probes,
    quantity,
    server,
    variables,
)

OVERLAYS = ("overlays/cpu", "overlays/gpu", "overlays/example")
KSERVE = ("kserve", "kserve/runtime")
# The folder, and the object in it that brings the server's container.
SERVING = [(overlay, "Deployment") for overlay in OVERLAYS]
SERVING += [("kserve", "InferenceService"), ("kserve/runtime", "ServingRuntime")]
# Oldest and newest that we say it runs on; in between it is the same objects.
KUBERNETES = ("1.27", "1.37")
# What a server takes on top of what its settings allow requests; measured 0.2 GiB on a CPU.
OWN_BYTES = {"cpu": 0.4 * 2**30, "cuda": 2.4 * 2**30}
BYTES_PER_PIXEL = 16  # README: what decoding one takes at most


@pytest.fixture(params=SERVING, ids=lambda serving: serving[0])
def serving(request: pytest.FixtureRequest) -> Manifest:
    """An object with the server's container."""
    folder, kind = request.param
    return one(built(folder), kind)


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> list[Manifest]:
    """All objects of an overlay."""
    return built(request.param)


def settings_of(container: Manifest, monkeypatch: pytest.MonkeyPatch) -> Settings:
    values = {k: v for k, v in variables(container).items() if k.startswith(ENV_PREFIX)}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return Settings.load([], values)


def own(manifests: list[Manifest]) -> list[Manifest]:
    """Those that Kubernetes itself defines."""
    foreign = ("monitoring.coreos.com/", "serving.kserve.io/")
    return [each for each in manifests if not each["apiVersion"].startswith(foreign)]


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_objects_fit_its_schemas(overlay: list[Manifest], version: str) -> None:
    assert {"Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"} <= {
        each["kind"] for each in own(overlay)
    }
    for manifest in own(overlay):
        kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("folder", KSERVE)
def test_the_pods_within_kserve_objects_fit_the_schema_of_pods(folder: str) -> None:
    kserves = {
        "minReplicas", "maxReplicas", "scaleMetric", "scaleTarget", "timeout",
        "deploymentStrategy", "model", "supportedModelFormats", "protocolVersions", "multiModel",
        "annotations",
    }  # fmt: skip
    for manifest in built(folder):
        spec = {key: value for key, value in pod_spec(manifest).items() if key not in kserves}
        model = pod_spec(manifest).get("model", {})
        container = {
            key: value
            for key, value in model.items()
            if key not in ("modelFormat", "protocolVersion", "runtime", "storageUri")
        }
        spec.setdefault("containers", [{"name": "kserve-container"} | container])
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}
        kubernetes_validate.validate(pod, KUBERNETES[-1], strict=True)
        strategy = pod_spec(manifest).get("deploymentStrategy")
        if strategy:
            deployment = one(built("overlays/cpu"), "Deployment")
            assert deployment["spec"]["strategy"] == strategy


def test_every_setting_is_one_that_the_server_accepts(
    serving: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(server(serving), monkeypatch)
    assert settings.host == "0.0.0.0"
    assert settings.port in {each["containerPort"] for each in server(serving)["ports"]}


def test_a_gpu_pod_refuses_to_serve_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("overlays/gpu", "overlays/example"):
        container = server(one(built(folder), "Deployment"))
        assert settings_of(container, monkeypatch).device == "cuda"
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert container["startupProbe"]["failureThreshold"] >= 300
        tolerated = pod_spec(one(built(folder), "Deployment"))["tolerations"]
        assert {each["key"] for each in tolerated} <= container["resources"]["limits"].keys()


def test_the_grace_period_holds_pause_and_drain(
    serving: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = server(serving)
    program, pause_s = container["lifecycle"]["preStop"]["exec"]["command"]
    assert program == "sleep"
    drain_s = settings_of(container, monkeypatch).drain_timeout_s
    # A runtime's grace period is told by the services that use it.
    folder = "kserve/runtime" if serving["kind"] == "ServingRuntime" else None
    pod = pod_spec(one(built(folder), "InferenceService") if folder else serving)
    assert pod["terminationGracePeriodSeconds"] > float(pause_s) + drain_s + LAST_RESORT_S
    assert "YOLO_FLA_DRAIN_TIMEOUT_S" in variables(container), "the default may change"


def test_probes_end_at_a_port_of_the_container_and_leave_the_start_its_time(
    serving: Manifest,
) -> None:
    container = server(serving)
    ports = {port for each in container["ports"] for port in (each["name"], each["containerPort"])}
    for name, probe in probes(container):
        assert probe["httpGet"]["port"] in ports
        assert probe["httpGet"]["path"].endswith("live" if name == "livenessProbe" else "ready")
    startup, readiness, liveness = (probe for _, probe in probes(container))
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 120
    # Out of the Service at the second failure; restarted only where it stays so.
    assert readiness["periodSeconds"] * readiness["failureThreshold"] <= 15
    assert liveness["periodSeconds"] * liveness["failureThreshold"] >= 30
    for probe in (startup, readiness, liveness):
        assert probe["timeoutSeconds"] <= 5
    assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"


@pytest.mark.parametrize("folder", [*OVERLAYS, *KSERVE])
def test_every_pod_is_hardened(folder: str, repo_dir: Path) -> None:
    user = re.search(r"^USER (\d+):(\d+)$", (repo_dir / "Dockerfile").read_text(), re.M)
    assert user is not None
    pods = [each for each in built(folder) if each["kind"] in ("Deployment", "InferenceService")]
    containers = [
        container
        for each in built(folder)
        if each["kind"] in ("Deployment", "InferenceService", "ServingRuntime")
        for kind in ("containers", "initContainers")
        for container in pod_spec(each).get(kind, [])
    ]
    assert pods
    assert containers
    for pod in map(pod_spec, pods):
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True
        assert (security["runAsUser"], security["runAsGroup"]) == tuple(map(int, user.groups()))
        assert security["fsGroup"] == security["runAsGroup"], "it could not read its keys"
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False, "or YOLO_FLA_PORT may come from a Service"
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    for container in containers:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        # Guaranteed, and a whole pod is only if all its containers are.
        assert container["resources"]["requests"] == container["resources"]["limits"]


def test_the_limits_leave_room_for_the_largest_image_that_is_allowed(
    serving: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(server(serving), monkeypatch)
    limits = server(serving)["resources"]["limits"]
    cpus, memory = quantity(limits["cpu"]), quantity(limits["memory"])
    assert cpus == int(cpus), "half a CPU is a thread that is stopped half the time"
    bodies = settings.max_inflight_body_bytes or min(2**28, int(memory / 8))
    left = memory * 7 / 8 - OWN_BYTES[settings.device] - bodies  # an eighth is spare
    assert left >= BYTES_PER_PIXEL * settings.max_image_pixels


def test_labels_and_ports_lead_to_the_pods(overlay: list[Manifest]) -> None:
    template = one(overlay, "Deployment")["spec"]["template"]
    labels = template["metadata"]["labels"]
    selectors = [
        one(overlay, "Deployment")["spec"]["selector"]["matchLabels"],
        one(overlay, "Service")["spec"]["selector"],
        one(overlay, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        one(overlay, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        *(
            each["labelSelector"]["matchLabels"]
            for each in template["spec"]["topologySpreadConstraints"]
        ),
    ]
    for selector in selectors:
        assert selector
        assert selector.items() <= labels.items()
    ports = {each["name"] for each in server(one(overlay, "Deployment"))["ports"]}
    (port,) = one(overlay, "Service")["spec"]["ports"]
    assert port["targetPort"] in ports


def test_all_objects_are_in_one_namespace(overlay: list[Manifest]) -> None:
    namespace = one(overlay, "Namespace")["metadata"]
    assert namespace["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    others = [each for each in overlay if each["kind"] != "Namespace"]
    assert {each["metadata"]["namespace"] for each in others} == {namespace["name"]}


def test_only_named_namespaces_reach_the_server_and_it_reaches_nobody(
    overlay: list[Manifest],
) -> None:
    policy = one(overlay, "NetworkPolicy")["spec"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    assert policy["egress"] == []
    (rule,) = policy["ingress"]
    assert [each["port"] for each in rule["ports"]] == ["http"]
    allowed = [each["namespaceSelector"]["matchLabels"] for each in rule["from"]]
    assert {"kubernetes.io/metadata.name": "monitoring"} in allowed
    assert {} not in allowed


def test_a_rollout_takes_no_pod_away_before_its_successor_is_ready(
    overlay: list[Manifest],
) -> None:
    strategy = one(overlay, "Deployment")["spec"]["strategy"]["rollingUpdate"]
    assert strategy == {"maxUnavailable": 0, "maxSurge": 1}
    # A node can be drained, however many replicas there are and in whatever state.
    budget = one(overlay, "PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] == 1
    assert "minAvailable" not in budget
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_images_are_those_that_a_release_builds(repo_dir: Path) -> None:
    project = tomllib.loads((repo_dir / "pyproject.toml").read_text())["project"]
    stages = re.findall(r"^FROM server AS (\w+)$", (repo_dir / "Dockerfile").read_text(), re.M)
    assert set(stages) == {"cpu", "gpu"}
    for extra in stages:
        container = server(one(built(f"overlays/{extra}"), "Deployment"))
        assert container["image"] == f"{project['name']}:{project['version']}-{extra}"
    for folder, kind in SERVING:
        name, _, tag = server(one(built(folder), kind))["image"].partition(":")
        assert name.endswith(project["name"])
        assert tag in [f"{project['version']}-{extra}" for extra in stages]
