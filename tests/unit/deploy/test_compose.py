"""The compose files: hardened, bounded, pinned, and of one piece with what they mount."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.settings import Settings

DOCKER = Path(__file__).resolve().parents[3] / "docker"
SERVICES = ["detector", "prometheus", "grafana"]


class Loader(yaml.SafeLoader):
    """Knows Compose's tag for what an override takes away."""


Loader.add_constructor("!reset", lambda loader, node: None)


def load(name: str) -> dict[str, Any]:
    text = (DOCKER / name).read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.load(text, Loader)
    return loaded


COMPOSE = load("compose.yaml")


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_no_privileges_and_its_resources_are_bounded(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]
    assert service["pids_limit"] > 0
    assert service["restart"] == "unless-stopped"
    assert set(service["logging"]["options"]) == {"max-size", "max-file"}
    assert not {"privileged", "network_mode", "pid", "cap_add"} & set(service)


@pytest.mark.parametrize("name", ["prometheus", "grafana"])
def test_a_foreign_image_is_pinned_and_does_not_run_as_root(name: str) -> None:
    service = COMPOSE["services"][name]
    assert re.fullmatch(r"docker\.io/.+:v?\d+\.\d+\.\d+", service["image"])
    assert service["user"].split(":")[0] not in ("0", "root")


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_for_this_machine_only_unless_said_otherwise(name: str) -> None:
    (port,) = COMPOSE["services"][name]["ports"]
    assert re.fullmatch(r"(127\.0\.0\.1|\$\{DETECTOR_ADDRESS:-127\.0\.0\.1\}):(\d+):\2", port)


def test_the_server_has_time_to_drain() -> None:
    grace_s = float(COMPOSE["services"]["detector"]["stop_grace_period"].removesuffix("s"))
    assert grace_s > Settings.model_fields["drain_timeout_s"].default + 2


def test_whoever_has_no_gpu_asks_for_none() -> None:
    gpu, cpu = COMPOSE["services"]["detector"], load("compose.cpu.yaml")["services"]["detector"]
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert set(gpu["deploy"]["resources"]) == {"reservations"}  # nothing else is taken away
    assert cpu["deploy"] is None
    assert (gpu["build"]["args"]["EXTRA"], cpu["build"]["args"]["EXTRA"]) == ("gpu", "cpu")
    assert gpu["image"] != cpu["image"]


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_mounted_is_there(name: str) -> None:
    for volume in COMPOSE["services"][name].get("volumes", []):
        source, target, *mode = volume.split(":")
        if source.startswith("."):
            assert (DOCKER / source).is_dir()
            assert mode == ["ro"]
        else:
            assert source in COMPOSE["volumes"]
            assert target.startswith("/")


def test_prometheus_asks_the_server_of_this_file_and_keeps_a_bounded_time_and_size() -> None:
    configuration = load("prometheus/prometheus.yml")
    (job,) = configuration["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["detector:8000"]}]
    command = " ".join(COMPOSE["services"]["prometheus"]["command"])
    assert "--storage.tsdb.retention.time=" in command
    assert "--storage.tsdb.retention.size=" in command
    assert "--config.file=/etc/prometheus/prometheus.yml" in command


def test_grafana_has_no_account_that_somebody_could_know_the_password_of() -> None:
    environment = COMPOSE["services"]["grafana"]["environment"]
    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert not any("PASSWORD" in name for name in environment)


def test_grafana_finds_its_data_source_and_its_dashboard() -> None:
    (source,) = load("grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    interval = load("prometheus/prometheus.yml")["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == interval
    (provider,) = load("grafana/provisioning/dashboards/detector.yaml")["providers"]
    grafana = COMPOSE["services"]["grafana"]
    mounts = dict(volume.split(":")[1::-1] for volume in grafana["volumes"])
    folder = DOCKER / mounts[provider["options"]["path"]]
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (folder / Path(home).name).is_file()
    assert Path(home).parent == Path(provider["options"]["path"])
    board = json.loads((folder / Path(home).name).read_text(encoding="utf-8"))
    (chosen,) = (v for v in board["templating"]["list"] if v["name"] == "datasource")
    assert chosen["current"]["value"] == source["uid"]
