import subprocess
from pathlib import Path

import pytest
import release
from release import Refused, Release

CHANGELOG = """# Changelog

## [Unreleased]

## [1.2.0] - 2026-11-22

### Added

- Something.

## [1.1.0] - 2026-10-01

## [1.0.0]

- Without a date.
"""
PROJECT = """[project]
name = "yolov8-fla"
version = "1.2.0"
[project.optional-dependencies]
cpu = ["onnxruntime"]
gpu = ["onnxruntime-gpu"]
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project that may be released, in a repository apart from this machine's configuration."""
    for name in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    git(tmp_path, "init", "-q", "-b", "main")
    commit(tmp_path)
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    named = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "tag.gpgSign=false"]
    command = ["git", "-C", str(folder), *named, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def commit(folder: Path) -> str:
    git(folder, "add", "--all")
    git(folder, "commit", "-q", "--allow-empty", "-m", "a change")
    return git(folder, "rev-parse", "HEAD")


def test_a_clean_commit_with_its_changes_told_may_be_released(checkout: Path) -> None:
    found = release.examine(checkout)
    assert found == Release("1.2.0", git(checkout, "rev-parse", "HEAD"), ("cpu", "gpu"))
    git(checkout, "tag", "-a", "v1.2.0", "-m", "1.2.0")
    git(checkout, "tag", "nightly")  # a tag that names no version says nothing against one
    assert release.examine(checkout) == found


@pytest.mark.parametrize("file", ["CHANGELOG.md", "new.py"])
def test_files_that_no_commit_has_are_refused(checkout: Path, file: str) -> None:
    (checkout / file).write_text("changed")
    with pytest.raises(Refused, match=f"1 files differ from the commit, {file} first"):
        release.examine(checkout)


def test_a_tag_of_another_version_is_refused(checkout: Path) -> None:
    git(checkout, "tag", "v1.1.0")
    with pytest.raises(Refused, match=r"tagged v1\.1\.0, and pyproject\.toml says 1\.2\.0"):
        release.examine(checkout)


def test_a_version_is_released_once(checkout: Path) -> None:
    git(checkout, "tag", "v1.2.0")
    commit(checkout)
    with pytest.raises(Refused, match=r"v1\.2\.0 is another commit's"):
        release.examine(checkout)


@pytest.mark.parametrize(
    "version",
    ["1.3.0", "1.2", "1.1.0", "1.0.0"],  # no section of 1.3.0 and 1.2, no points, no date
)
def test_a_version_without_a_dated_section_that_tells_something_is_refused(version: str) -> None:
    release.refuse_untold("1.2.0", CHANGELOG)
    with pytest.raises(Refused, match=f"no points under '## .{version}. - YYYY-MM-DD'"):
        release.refuse_untold(version, CHANGELOG)


def test_what_is_built_are_the_files_of_the_commit_and_no_others(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    made = git(checkout, "rev-parse", "HEAD")
    (checkout / ".git" / "info").mkdir(exist_ok=True)
    (checkout / ".git" / "info" / "exclude").write_text("*.onnx\n")
    (checkout / "stray.onnx").write_text("overlooked by git, and so by its status")
    assert release.examine(checkout).commit == made
    (checkout / "CHANGELOG.md").write_text("changed while images are built")
    commit(checkout)
    source = release.cloned(checkout, made, tmp_path_factory.mktemp("source"))
    files = {path.name: path.read_text() for path in source.iterdir() if path.is_file()}
    assert files == {"CHANGELOG.md": CHANGELOG, "pyproject.toml": PROJECT}
