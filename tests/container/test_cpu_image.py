"""What is in the image for CPUs, and what is not."""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sbom

from benchmarks.container_engine import Engine

LARGEST_BYTES = 450_000_000

# The flags in a compiled file: 1 stands for "never compare me with the source".
LOOK_AROUND = """
import importlib.util, json, pathlib, shutil, sys
site = pathlib.Path(sys.prefix, "lib/python3.11/site-packages")
print(json.dumps({
    "modules": [each for each in sys.argv[1:] if importlib.util.find_spec(each)],
    "programs": [each for each in sys.argv[1:] if shutil.which(each)],
    "uncompiled": [
        str(each) for each in site.rglob("*.py")
        if not (each.parent / "__pycache__" / (each.stem + ".cpython-311.pyc")).exists()
    ],
    "stale": [
        str(each) for each in site.rglob("*.pyc") if each.read_bytes()[4:8] != b"\\x01\\0\\0\\0"
    ],
    "privileged": [
        str(each) for folder in ("/usr/bin", "/usr/sbin", "/usr/lib", "/opt")
        for each in pathlib.Path(folder).rglob("*")
        if each.is_file() and not each.is_symlink() and each.stat().st_mode & 0o6000
    ],
}))
"""
UNWANTED_MODULES = (
    "torch torchvision ultralytics onnx onnxslim pip setuptools pytest matplotlib model export"
)
UNWANTED_PROGRAMS = "cc gcc g++ c++ clang make ld as nvcc pip pip3 curl wget git"

SECRETS = ("etc/pip.conf", "run/build-ca.crt")


@pytest.fixture(scope="module")
def known(engine: Engine, cpu_image: str) -> dict[str, Any]:
    return engine.inspect_image(cpu_image)


@pytest.fixture(scope="module")
def inside(engine: Engine, cpu_image: str) -> dict[str, list[str]]:
    unwanted = f"{UNWANTED_MODULES} {UNWANTED_PROGRAMS} json python".split()
    found = engine.output(
        "run", "--rm", "--entrypoint=python", cpu_image, "-c", LOOK_AROUND, *unwanted
    )
    answer = json.loads(found)
    assert isinstance(answer, dict)
    return answer


def test_it_has_at_most_450_mb(known: dict[str, Any]) -> None:
    assert known["Size"] <= LARGEST_BYTES


def test_it_holds_no_training_conversion_or_installing_library(
    inside: dict[str, list[str]],
) -> None:
    assert inside["modules"] == ["json"]


def test_its_bill_of_materials_lists_python_debian_and_what_wheels_bundle(
    engine: Engine, cpu_image: str
) -> None:
    bill = json.loads(sbom.of_image([engine.command], cpu_image))
    names = {each["name"]: each for each in bill["components"]}
    assert names.keys() >= {"debian", "libc6", "numpy", "onnxruntime", "orjson"}
    assert names["orjson"]["components"]


def test_it_holds_no_compiler_and_no_program_that_downloads(inside: dict[str, list[str]]) -> None:
    assert inside["programs"] == ["python"]


def test_all_python_is_compiled_as_nothing_can_be_written(inside: dict[str, list[str]]) -> None:
    assert inside["uncompiled"] == []
    assert inside["stale"] == [], "compiled files that Python would compare with their source"


def test_no_program_in_it_changes_who_one_is(inside: dict[str, list[str]]) -> None:
    assert inside["privileged"] == []


def test_it_says_how_it_is_run(known: dict[str, Any]) -> None:
    config = known["Config"]
    assert config["User"] == "10001:10001"
    assert config["StopSignal"] in ("SIGTERM", "15")
    assert config["WorkingDir"] == "/app"
    assert list(config["ExposedPorts"]) == ["8000/tcp"]
    assert config["Entrypoint"] == ["/opt/venv/bin/python", "-m", "server"]
    environment = dict(each.split("=", 1) for each in config["Env"])
    assert environment["ORT_DISABLE_TELEMETRY"] == "1"
    assert environment["YOLO_FLA_HOST"] == "0.0.0.0"
    assert "NVIDIA_VISIBLE_DEVICES" not in environment


def test_it_says_what_it_is(known: dict[str, Any]) -> None:
    labels = known["Config"]["Labels"]
    assert labels["org.opencontainers.image.licenses"] == "AGPL-3.0-only"
    assert labels["org.opencontainers.image.revision"] == "a-revision"
    assert "(cpu)" in labels["org.opencontainers.image.description"]


def test_no_layer_keeps_what_the_build_was_given_in_secret(
    engine: Engine, cpu_image: str, tmp_path: Path
) -> None:
    # Also not one below another that deleted it, as those travel along.
    saved = tmp_path / "image.tar"
    engine.output("save", f"--output={saved}", cpu_image)
    files = {name: size for layer in layers(saved) for name, size in layer.items()}
    assert "opt/venv/pyvenv.cfg" in files
    secret = [name for name in files if name in SECRETS or name.startswith("root/.cache/")]
    assert [name for name in secret if files[name]] == []  # where one was mounted is an empty file


def layers(saved: Path) -> Iterator[dict[str, int]]:
    """The files of each layer of a saved image, with their bytes."""
    with tarfile.open(saved) as image:
        for member in image:
            try:
                layer = tarfile.open(fileobj=image.extractfile(member))  # noqa: SIM115  # may raise
            except tarfile.ReadError:
                continue  # what is told about the image
            with layer:
                yield {each.name.removeprefix("./"): each.size for each in layer if each.isfile()}
