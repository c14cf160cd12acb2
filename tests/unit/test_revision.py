"""What `hatch_build.py` builds into wheels and source archives, in a small copy of the project."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from hatch_build import RevisionHook

COPIED = ("hatch_build.py", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", ".gitignore")


@pytest.fixture
def project(repo_dir: Path, tmp_path: Path) -> Path:
    """The project, with packages that are empty; no checkout."""
    folder = tmp_path / "project"
    folder.mkdir()
    for name in COPIED:
        shutil.copy(repo_dir / name, folder)
    for package in ("server", "model", "export"):
        (folder / package).mkdir()
        (folder / package / "__init__.py").touch()
    return folder


def outside() -> dict[str, str]:
    """The environment without what git and the hook would take from it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    kept.pop("REVISION", None)
    return kept | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=A", "-c", "user.email=a@example.org", *arguments]
    done = subprocess.run(
        command, cwd=folder, env=outside(), check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def commit(folder: Path) -> str:
    git(folder, "init", "-q")
    git(folder, "add", "--all")
    git(folder, "commit", "-q", "-m", "one")
    return git(folder, "rev-parse", "HEAD")


def try_to_build(project: Path, target: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hatchling", "build", "--target", target]
    return subprocess.run(
        command, cwd=project, env=outside() | variables, capture_output=True, text=True, timeout=60
    )


def build(project: Path, target: str = "wheel", **variables: str) -> Path:
    done = try_to_build(project, target, **variables)
    assert done.returncode == 0, done.stderr
    assert not (project / "server" / "revision.txt").exists()  # the source stays as it is
    pattern = "*.tar.gz" if target == "sdist" else "*.whl"
    (built,) = (project / "dist").glob(pattern)
    return built


def revision_in(wheel: Path) -> str | None:
    with zipfile.ZipFile(wheel) as archive:
        assert len(set(archive.namelist())) == len(archive.namelist())
        if "server/revision.txt" not in archive.namelist():
            return None
        return archive.read("server/revision.txt").decode()


def test_a_wheel_names_the_commit_that_is_checked_out(project: Path) -> None:
    made = commit(project)
    assert revision_in(build(project)) == f"{made}\n"


@pytest.mark.parametrize("file", ["server/__init__.py", "server/new.py"])
def test_a_wheel_says_that_files_differ_from_the_commit(project: Path, file: str) -> None:
    made = commit(project)
    (project / file).write_text("changed = True\n")
    assert revision_in(build(project)) == f"{made}-dirty\n"


def test_what_the_environment_tells_is_taken_as_it_is(project: Path) -> None:
    commit(project)
    assert revision_in(build(project, REVISION="0123abc")) == "0123abc\n"


@pytest.mark.parametrize("revision", ["two words", "-x", "a" * 101, "a\nb"])
def test_what_is_no_name_of_a_commit_ends_the_build(project: Path, revision: str) -> None:
    done = try_to_build(project, "wheel", REVISION=revision)
    assert done.returncode != 0
    assert "is no name of a commit" in done.stderr


@pytest.mark.parametrize("variables", [{}, {"REVISION": ""}])
def test_without_a_checkout_no_commit_is_made_up(project: Path, variables: dict[str, str]) -> None:
    done = try_to_build(project, "wheel", **variables)
    assert "the build names no commit" in done.stdout + done.stderr
    assert revision_in(build(project, **variables)) is None


def test_a_checkout_around_the_project_is_another_projects(project: Path) -> None:
    commit(project.parent)
    assert revision_in(build(project)) is None


def test_a_wheel_of_a_source_archive_names_the_archives_commit(
    project: Path, tmp_path: Path
) -> None:
    made = commit(project)
    with tarfile.open(build(project, "sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.glob("yolov8_fla-*")
    done = try_to_build(unpacked, "wheel", REVISION="another")
    assert done.returncode == 0, done.stderr
    (wheel,) = (unpacked / "dist").glob("*.whl")
    assert revision_in(wheel) == f"{made}\n"


def test_an_editable_install_gets_no_file_as_its_checkout_moves_on(project: Path) -> None:
    commit(project)
    unused: Any = None
    hook = RevisionHook(str(project), {}, unused, unused, str(project / "dist"), "wheel")
    for version, files in (("standard", ["server/revision.txt"]), ("editable", [])):
        included: dict[str, str] = {}
        hook.initialize(version, {"force_include": included})
        assert list(included.values()) == files
    hook.finalize("standard", {}, "")


@pytest.mark.parametrize("target", ["wheel", "sdist"])
def test_the_same_commit_gives_the_same_bytes(project: Path, target: str) -> None:
    commit(project)
    built = build(project, target, SOURCE_DATE_EPOCH="1700000000")
    first = built.read_bytes()
    built.unlink()
    os.utime(project / "server" / "__init__.py", (0, 0))
    second = build(project, target, SOURCE_DATE_EPOCH="1700000000").read_bytes()
    assert first == second
