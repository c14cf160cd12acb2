import os
import shutil
import subprocess
from pathlib import Path

import pytest

NO_TOOL = 3
# What the script itself uses of a machine.
USED = "bash cat chmod dirname id mkdir tail tr"


@pytest.fixture
def bare_machine(tmp_path: Path) -> dict[str, str]:
    """An environment with neither docker nor podman, and nothing to install them with."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for each in USED.split():
        found = shutil.which(each)
        assert found
        (programs / each).symlink_to(found)
    return {"PATH": str(programs), "CONTAINER_STORAGE": str(tmp_path / "storage")}


def run(repo: Path, environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [shutil.which("bash") or "bash", str(repo / ".ci" / "container_tools.sh"), *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_where_no_container_tool_can_be_had_it_says_why(
    repo_dir: Path, bare_machine: dict[str, str]
) -> None:
    told = run(repo_dir, bare_machine, "tool")
    assert told.returncode == NO_TOOL
    assert told.stdout == ""
    assert told.stderr.startswith("no container tool: ")
    assert "podman" in told.stderr


def test_a_docker_engine_that_answers_is_taken_as_it_is(
    repo_dir: Path, bare_machine: dict[str, str], tmp_path: Path
) -> None:
    docker = tmp_path / "bin" / "docker"
    docker.write_text("#!/bin/sh\nexit 0\n")
    docker.chmod(0o755)
    told = run(repo_dir, bare_machine, "tool")
    assert (told.returncode, told.stdout) == (0, "docker\n")
    assert not (tmp_path / "storage").exists()


def test_a_docker_command_without_its_engine_is_no_tool(
    repo_dir: Path, bare_machine: dict[str, str], tmp_path: Path
) -> None:
    docker = tmp_path / "bin" / "docker"
    docker.write_text("#!/bin/sh\nexit 1\n")
    docker.chmod(0o755)
    assert run(repo_dir, bare_machine, "tool").returncode == NO_TOOL


def test_an_unknown_command_is_answered_with_how_to_call_it(
    repo_dir: Path, bare_machine: dict[str, str]
) -> None:
    told = run(repo_dir, os.environ | bare_machine | {"PATH": os.environ["PATH"]}, "bake")
    assert told.returncode == 64
    assert "container_tools.sh build" in told.stderr


@pytest.mark.parametrize(
    ("extra", "run_it"),
    [
        ("cpu", "docker run --rm -p 127.0.0.1:8000:8000 yolov8-fla:cpu"),
        ("auto", "docker run --rm --gpus all -p 127.0.0.1:8000:8000 yolov8-fla"),
    ],
)
def test_make_image_ends_with_the_command_that_runs_what_it_built(
    repo_dir: Path, tmp_path: Path, extra: str, run_it: str
) -> None:
    calls = tmp_path / "calls"
    docker = tmp_path / "docker"
    docker.write_text(f'#!/bin/sh\necho "$@" >>"{calls}"\n')
    docker.chmod(0o755)
    made = subprocess.run(
        ["make", "--no-print-directory", "image", f"EXTRA={extra}"],
        cwd=repo_dir,
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert made.stderr.splitlines()[-1] == f"run it: {run_it}"
    (build,) = (each for each in calls.read_text().splitlines() if each.startswith("build "))
    assert f"-t {run_it.split()[-1]} ." in build
