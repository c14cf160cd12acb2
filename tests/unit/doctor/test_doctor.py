import json
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from server.doctor.command import main
from server.doctor.gpu_facts import Build, read_build
from server.doctor.host import check_machine, check_software
from server.doctor.model import check_model
from server.doctor.report import Check, Report
from server.doctor.start import check_settings
from server.host import available_cpus
from server.inference.artifact import load_artifact
from server.inference.devices import gpu_visible
from server.settings import Settings
from tests.support.artifacts import tiny_artifact

NOTHING: Mapping[str, str] = {}


def by_name(found: Iterable[Check]) -> dict[str, Check]:
    return {check.name: check for check in found}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_artifact(tmp_path / "tiny.onnx")


def settings(**given: Any) -> Settings:
    values: dict[str, Any] = {"device": "cpu", "port": 0} | given
    return Settings(**values)


def test_the_report_is_sections_of_marked_lines_with_fixes_below() -> None:
    report = Report(
        (
            Check("Software", "Python", "ok", "3.11.7"),
            Check("GPU", "driver", "warn", "old", ("install another", "or none")),
        )
    )
    assert report.would_start
    assert report.text() == (
        "Software\n"
        "  ok    Python             3.11.7\n"
        "\n"
        "GPU\n"
        "  warn  driver             old\n"
        "        fix: install another\n"
        "        fix: or none\n"
        "\n"
        "The server would start: no problems, 1 warning."
    )


def test_one_failure_means_that_the_server_would_not_start() -> None:
    report = Report((Check("GPU", "build", "fail", "none"), Check("GPU", "GPU", "fail", "none")))
    assert not report.would_start
    assert report.text().endswith("The server would NOT start: 2 problems, no warnings.")
    assert json.loads(report.json()) == {
        "would_start": False,
        "checks": [
            {"section": "GPU", "name": name, "mark": "fail", "text": "none", "fixes": []}
            for name in ("build", "GPU")
        ],
    }


def test_this_environment_is_well() -> None:
    found = by_name(check_software(read_build(), NOTHING))
    assert {check.mark for check in found.values()} <= {"ok", "info"}
    assert "onnxruntime" in found["ONNX Runtime"].text


@pytest.mark.parametrize(
    ("build", "mark", "text"),
    [
        (Build({"onnxruntime": "1", "onnxruntime-gpu": "1"}, ("CPU",)), "warn", "both installed"),
        (Build({}, problem="ModuleNotFoundError: onnxruntime"), "fail", "not installed"),
        (Build({"onnxruntime": "1"}, problem="AttributeError: x"), "fail", "AttributeError"),
    ],
)
def test_a_broken_onnx_runtime_is_told_with_the_way_to_install_it_anew(
    build: Build, mark: str, text: str
) -> None:
    check = by_name(check_software(build, NOTHING))["ONNX Runtime"]
    assert check.mark == mark
    assert text in check.text
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in check.fixes[1]


@pytest.mark.parametrize(("value", "mark"), [(None, "ok"), ("1", "ok"), ("0", "warn")])
def test_telemetry_that_is_on_is_told(value: str | None, mark: str) -> None:
    environment = {} if value is None else {"ORT_DISABLE_TELEMETRY": value}
    assert by_name(check_software(read_build(), environment))["telemetry"].mark == mark


@pytest.mark.parametrize(
    ("limit", "mark", "text"),
    [(None, "info", "none"), (2**30, "ok", "1024 MiB"), (2**28, "warn", "256 MiB: the server")],
)
def test_a_memory_limit_that_is_too_low_is_told(limit: int | None, mark: str, text: str) -> None:
    check = by_name(check_machine(1.5, limit))["memory limit"]
    assert check.mark == mark
    assert check.text.startswith(text)


@pytest.mark.parametrize(
    ("limit_mib", "text"),
    [(1024, "about 468 MiB for what is decoded, 128 MiB for bodies"), (256, "about 32 MiB")],
)
def test_the_memory_for_images_is_told(limit_mib: int, text: str) -> None:
    check = by_name(check_machine(None, limit_mib * 2**20))["memory for images"]
    assert check.text.startswith(text)


def test_the_quota_is_told() -> None:
    assert "a quota of 1.5" in by_name(check_machine(1.5, None))["usable CPUs"].text


def test_a_model_is_loaded_and_run_and_its_nodes_are_counted(model: Path) -> None:
    found = by_name(check_model(settings(model=model), read_build(), gpu_visible=False))
    assert found["fp32"].text.startswith(f"{model}, 0.0 MiB, version ")
    assert found["chosen"].text.startswith("fp32: the only file")
    assert found["runs on"].text.startswith("CPUExecutionProvider on cpu, ready after ")
    assert found["nodes"].text.endswith("on CPUExecutionProvider")
    assert found["inferences"].text.endswith(f"1 for each, {available_cpus()} for a sole request")
    assert "ms for one image of 64x64" in found["one alone"].text
    assert all(check.mark in ("ok", "info") for check in found.values())


def test_auto_without_a_gpu_says_so_and_takes_the_cpu(model: Path) -> None:
    asked = settings(model=model, device="auto")
    found = by_name(check_model(asked, read_build(), gpu_visible=False))
    assert found["cuda:0"].mark == "info"
    assert "CPUExecutionProvider" in found["runs on"].text


@pytest.mark.skipif(gpu_visible(), reason="there is an NVIDIA GPU here")
@pytest.mark.parametrize(("device", "mark"), [("auto", "warn"), ("cuda", "fail")])
def test_a_gpu_that_does_not_run_the_model_is_as_bad_as_it_was_asked_for(
    model: Path, device: str, mark: str
) -> None:
    asked = settings(model=model, device=device)
    found = by_name(check_model(asked, read_build(), gpu_visible=True))
    assert found["cuda:0"].mark == mark
    assert "does not run: " in found["cuda:0"].text
    assert ("runs on" in found) is (device == "auto")


def test_a_model_that_is_no_artifact_fails(tmp_path: Path) -> None:
    (tmp_path / "other.onnx").write_bytes(b"nothing")
    (check,) = check_model(settings(model=tmp_path), read_build(), gpu_visible=False)
    assert check.mark == "fail"
    assert "other.onnx" in check.text


def test_a_precision_that_is_not_there_fails(model: Path) -> None:
    asked = settings(model=model, precision="int8")
    found = by_name(check_model(asked, read_build(), gpu_visible=False))
    assert found["cpu"].mark == "fail"
    assert "int8 was asked for" in found["cpu"].text


def test_a_loss_of_accuracy_that_was_accepted_is_a_warning(model: Path) -> None:
    certificate = load_artifact(model).metadata.certificate
    accepted = certificate.model_copy(update={"verdict": "loss_accepted"})
    tiny_artifact(model, precision="int8", certificate=accepted)
    found = by_name(check_model(settings(model=model), read_build(), gpu_visible=False))
    assert found["chosen"].mark == "warn"
    assert "--accept-loss" in found["chosen"].fixes[0]


def test_files_that_call_the_model_differently_are_a_warning(model: Path) -> None:
    tiny_artifact(model.with_name("int8.onnx"), precision="int8", name="tiny-int8")
    found = by_name(check_model(settings(model=model.parent), read_build(), gpu_visible=False))
    assert found["name"].mark == "warn"
    assert "tiny, tiny-int8" in found["name"].text


def test_without_onnx_runtime_no_session_is_tried(model: Path) -> None:
    build = Build({}, problem="ModuleNotFoundError")
    found = by_name(check_model(settings(model=model), build, gpu_visible=False))
    assert found["session"].mark == "fail"


def test_a_taken_port_fails() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        asked = settings(port=taken.getsockname()[1])
        assert by_name(check_settings(asked))["address"].mark == "fail"
    assert by_name(check_settings(settings()))["address"].mark == "ok"


@pytest.mark.parametrize(
    ("host", "keys", "mark"),
    [("127.0.0.1", "", "info"), ("0.0.0.0", "", "warn"), ("0.0.0.0", "secret", "ok")],
)
def test_a_server_that_is_open_to_all_is_a_warning(host: str, keys: str, mark: str) -> None:
    assert by_name(check_settings(settings(host=host, api_keys=keys)))["keys"].mark == mark


def test_a_file_of_keys_that_is_not_there_fails(tmp_path: Path) -> None:
    asked = settings(api_keys_file=tmp_path / "keys")
    assert by_name(check_settings(asked))["keys"].mark == "fail"


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_no_secret_is_printed(
    model: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    given = ["--model", str(model), "--device", "cpu", "--port", "0", "--api-keys", "hush-hush"]
    assert main([*given, *flags], NOTHING)
    printed = capsys.readouterr().out
    assert "YOLO_FLA_API_KEYS" in printed
    assert "hush-hush" not in printed


def test_the_command_says_as_json_whether_the_server_would_start(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--model", str(model), "--device", "cpu", "--port", "0", "--json"]
    assert main(given, NOTHING)
    report = json.loads(capsys.readouterr().out)
    assert report["would_start"] is True
    assert {check["section"] for check in report["checks"]} == {
        "Software",
        "Machine",
        "GPU",
        "Model",
        "Settings",
    }


def test_wrong_settings_are_told_and_the_rest_is_looked_at_all_the_same(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert not main(["--max-batch-size", "none"], NOTHING)
    printed = capsys.readouterr().out
    assert "FAIL  settings" in printed
    assert "--max-batch-size" in printed
    assert "\nModel\n" in printed
