"""docs/client.md: every example runs as it stands, but for the port."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from yolov8_fla_client.command import parser
from yolov8_fla_client.sync_client import Client

from tests.support.processes import ready

PAGE = Path(__file__).resolve().parents[2] / "docs/client.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ADDRESS = "http://127.0.0.1:8000"
LIMIT_S = 60
TEXT = PAGE.read_text(encoding="utf-8")


def of(language: str, having: str) -> list[str]:
    found = [code for tongue, code in BLOCK.findall(TEXT) if tongue == language and having in code]
    assert found
    return found


@pytest.fixture(scope="module")
def url(repo_dir: Path) -> Iterator[str]:
    with ready(repo_dir, repo_dir / "weights") as (_, http):
        yield str(http.base_url).rstrip("/")


@pytest.fixture
def folder(repo_dir: Path, tmp_path: Path) -> Path:
    """What the page says that its examples run in."""
    (tmp_path / "samples").symlink_to(repo_dir / "samples")
    return tmp_path


def run(command: list[str], folder: Path) -> str:
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PATH": programs},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("code", of("python", "from yolov8_fla_client"))
def test_every_python_example_runs(code: str, url: str, folder: Path) -> None:
    assert ADDRESS in code
    run([sys.executable, "-W", "error", "-c", code.replace(ADDRESS, url)], folder)


def test_no_python_example_is_left_out() -> None:
    assert len(of("python", "")) == len(of("python", "from yolov8_fla_client"))


@pytest.mark.slow
def test_the_commands_leave_what_the_page_says(url: str, folder: Path) -> None:
    (code,) = of("sh", "yolov8-fla-client")
    printed = run(["bash", "-eu", "-c", code.replace(ADDRESS, url)], folder)
    assert '"status": "ready"' in printed
    assert len((folder / "found.jsonl").read_text().splitlines()) == 3
    assert (folder / "found.json").exists()
    assert (folder / "dataset/labels/smear_1.txt").exists()
    assert (folder / "dataset/data.yaml").exists()
    assert (folder / "annotated/smear_3.jpg").exists()


def test_every_option_and_default_on_the_page_is_there() -> None:
    help_text = "".join(
        each.format_help()
        for each in parser({})._subparsers._group_actions[0].choices.values()  # type: ignore[union-attr]
    )
    for option in set(re.findall(r"`(--[a-z-]+)", TEXT)):
        assert option in help_text, option
    for name in re.findall(r"`([a-z_]+)`", TEXT.split("have the same methods: ")[1].split("\n")[0]):
        assert callable(getattr(Client, name)), name
