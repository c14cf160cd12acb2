import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2.version
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

PACKAGES = ("export", "model", "server")


@pytest.fixture(scope="module")
def project(repo_dir: Path) -> dict[str, Any]:
    return tomllib.loads((repo_dir / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def pins(repo_dir: Path) -> dict[str, Version]:
    """Name and version of every line of constraints.txt; a line of another form fails here."""
    lines = (repo_dir / "constraints.txt").read_text().splitlines()
    found = [re.fullmatch(r"([a-z0-9-]+)==([0-9a-z.]+)", x) for x in lines if x[:1] != "#"]
    assert all(found), "a line of constraints.txt is not `name==version`"
    return {canonicalize_name(pin[1]): Version(pin[2]) for pin in found if pin}


@pytest.fixture(scope="module")
def client(repo_dir: Path) -> dict[str, Any]:
    return tomllib.loads((repo_dir / "client" / "pyproject.toml").read_text())


def test_the_client_has_the_version_and_the_licence_of_the_server(
    repo_dir: Path, project: dict[str, Any], client: dict[str, Any]
) -> None:
    assert client["project"]["version"] == project["project"]["version"]
    assert client["build-system"]["requires"] == project["build-system"]["requires"]
    assert (repo_dir / "client/LICENSE").read_bytes() == (repo_dir / "LICENSE").read_bytes()


def requirements(project: dict[str, Any]) -> list[Requirement]:
    table = project["project"]
    groups = [
        project["build-system"]["requires"],
        table["dependencies"],
        *table["optional-dependencies"].values(),
        *project["dependency-groups"].values(),
    ]
    return [Requirement(text) for group in groups for text in group]


def test_constraints_pin_every_named_requirement_to_a_version_it_accepts(
    project: dict[str, Any], client: dict[str, Any], pins: dict[str, Version]
) -> None:
    own = map(Requirement, client["project"]["dependencies"])
    for requirement in [*requirements(project), *own]:
        version = pins.get(canonicalize_name(requirement.name))
        assert version is not None, f"constraints.txt does not pin {requirement.name}"
        assert version in requirement.specifier, f"{requirement} refuses the pinned {version}"


@pytest.mark.parametrize("name", ["fastapi", "onnxruntime", "pytest"])
def test_constraints_pin_what_the_requirements_bring_along(
    name: str, pins: dict[str, Version]
) -> None:
    waiting, seen = [canonicalize_name(name)], set()
    while waiting:
        seen.add(current := waiting.pop())
        assert current in pins, f"constraints.txt does not pin {current}, which {name} brings along"
        below = (Requirement(text) for text in metadata.requires(current) or ())
        needed = (r for r in below if r.marker is None or r.marker.evaluate({"extra": ""}))
        waiting += {canonicalize_name(r.name) for r in needed} - seen


def test_both_builds_of_a_library_have_one_version(pins: dict[str, Version]) -> None:
    assert pins["opencv-python"] == pins["opencv-python-headless"]
    assert pins["onnxruntime"] == pins["onnxruntime-gpu"]


def test_serving_requires_no_training_or_conversion_library(project: dict[str, Any]) -> None:
    extras = project["project"]["optional-dependencies"]
    serving = [*project["project"]["dependencies"], *extras["cpu"], *extras["gpu"]]
    names = {canonicalize_name(Requirement(text).name) for text in serving}
    assert names.isdisjoint({"torch", "torchvision", "ultralytics", "onnx", "opencv-python"})


def test_opencv_is_the_headless_build() -> None:
    try:
        metadata.version("opencv-python-headless")
    except metadata.PackageNotFoundError:
        pytest.skip("opencv-python-headless is not installed: this environment is not from `make`")
    assert cv2.version.headless, "opencv-python lies over opencv-python-headless: `make clean env`"


@pytest.fixture(scope="module")
def wheel(repo_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built by its own backend, which reaches for no network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
    built = subprocess.run(
        [*command, "--directory", str(folder)], cwd=repo_dir, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_the_packages_with_their_data_and_the_revision_and_nothing_else(
    repo_dir: Path, wheel: Path
) -> None:
    expected = {
        path.relative_to(repo_dir).as_posix()
        for package in PACKAGES
        for path in (repo_dir / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert any(name.endswith(".yaml") for name in expected)
    expected.add("server/revision.txt")  # by hatch_build.py
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    assert sorted(names) == sorted(expected)


def test_the_wheel_carries_its_licence_and_offers_the_extras(
    wheel: Path, project: dict[str, Any]
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (about,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        text = archive.read(about).decode()
        assert any(name.endswith("/licenses/LICENSE") for name in archive.namelist())
    assert "\nLicense-Expression: AGPL-3.0-only\n" in text
    for extra in project["project"]["optional-dependencies"]:
        assert f"\nProvides-Extra: {extra}\n" in text
