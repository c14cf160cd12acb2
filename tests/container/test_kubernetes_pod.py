"""The pod of deploy/kubernetes, run by podman: no cluster, but a runtime that reads manifests."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from benchmarks.container_engine import LIMIT_S, Container, Engine
from tests.support.manifests import FOLDER, build, one, pod_spec, probes, server

POD = "yolov8-fla-test-pod"


@pytest.fixture
def played(
    engine: Engine, cpu_image: str, tmp_path: Path
) -> Iterator[tuple[Container, httpx.Client]]:
    """The pod of the Deployment for CPUs, with another image and a port of this machine."""
    if engine.run("kube", "play", "--help").returncode != 0:
        pytest.skip(f"{engine.command} plays no Kubernetes manifests; podman does")
    spec = pod_spec(one(build(FOLDER / "overlays/cpu"), "Deployment"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    container = server({"kind": "Pod", "spec": spec})
    container |= {"image": f"localhost/{cpu_image}", "imagePullPolicy": "Never"}
    container["ports"][0] |= {"hostIP": "127.0.0.1", "hostPort": port}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": POD}, "spec": spec}
    manifest = tmp_path / "pod.yaml"
    manifest.write_text(yaml.safe_dump(pod))
    engine.run("pod", "rm", "--force", POD)
    engine.output("kube", "play", str(manifest))
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=LIMIT_S) as client:
            yield Container(engine, f"{POD}-{container['name']}"), client
    finally:
        engine.run("pod", "rm", "--force", POD)


def test_the_pod_starts_hardened_answers_its_probes_and_ends_in_order(
    played: tuple[Container, httpx.Client], engine: Engine, repo_dir: Path
) -> None:
    container, client = played
    spec = pod_spec(one(build(FOLDER / "overlays/cpu"), "Deployment"))
    detector = server({"kind": "Pod", "spec": spec})
    startup = detector["startupProbe"]
    deadline = time.monotonic() + startup["periodSeconds"] * startup["failureThreshold"]
    while not answers(client, startup["httpGet"]["path"]):
        assert time.monotonic() < deadline, container.logs()
        time.sleep(startup["periodSeconds"])  # as the kubelet does
    assert {answers(client, probe["httpGet"]["path"]) for _, probe in probes(detector)} == {True}
    image = (repo_dir / "samples" / "smear_1.jpg").read_bytes()
    headers = {"Content-Type": "image/jpeg"}
    answer = client.post("/detect", content=image, headers=headers).json()
    assert answer["results"][0]["detections"]
    assert client.get("/health").json()["instances"] == int(detector["resources"]["limits"]["cpu"])

    status = inside(engine, container, "cat", "/proc/1/status")
    lines = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    user = spec["securityContext"]["runAsUser"]
    assert lines["Uid"].split() == [str(user)] * 4
    assert int(lines["CapBnd"], 16) == 0
    assert (lines["NoNewPrivs"], lines["Seccomp"]) == ("1", "2")
    assert engine.run("exec", container.name, "touch", "/app/x").returncode != 0

    # How docs/kubernetes.md has new keys read; and then the end, as the kubelet brings it.
    inside(engine, container, "sh", "-c", "kill -HUP 1")
    while '"reloaded"' not in container.logs():
        assert time.monotonic() < deadline, container.logs()
    inside(engine, container, *detector["lifecycle"]["preStop"]["exec"]["command"])
    assert answers(client, "/health/ready")
    drain_s = spec["terminationGracePeriodSeconds"] - 10
    engine.output("stop", f"--time={drain_s}", container.name)
    assert container.state()["ExitCode"] == 0


def answers(client: httpx.Client, path: str) -> bool:
    try:
        return client.get(path).status_code == 200
    except httpx.TransportError:
        return False


def inside(engine: Engine, container: Container, *command: str) -> str:
    return engine.output("exec", container.name, *command)
