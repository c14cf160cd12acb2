import os
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from server.version import Build, checked_out, this_build

Git = Callable[..., str]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    folder.mkdir()
    return folder


@pytest.fixture
def git(checkout: Path) -> Git:
    """Runs git in a repository with one commit, untouched by this machine's configuration."""
    apart = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def run(*arguments: str) -> str:
        command = ["git", "-c", "user.name=A", "-c", "user.email=a@example.org", *arguments]
        done = subprocess.run(
            command, cwd=checkout, env=kept | apart, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    return run


def commit(git: Git, *, object_format: str = "sha1") -> str:
    git("init", "-q", "-b", "main", f"--object-format={object_format}")
    git("commit", "-q", "--allow-empty", "-m", "one")
    return git("rev-parse", "HEAD")


@pytest.mark.parametrize("object_format", ["sha1", "sha256"])
def test_the_commit_of_a_branch_is_found(checkout: Path, git: Git, object_format: str) -> None:
    made = commit(git, object_format=object_format)
    assert checked_out(checkout) == made


def test_the_commit_is_found_where_no_branch_is_checked_out(checkout: Path, git: Git) -> None:
    made = commit(git)
    git("checkout", "-q", "--detach")
    assert checked_out(checkout) == made


def test_the_commit_of_a_packed_branch_is_found(checkout: Path, git: Git) -> None:
    made = commit(git)
    git("branch", "main-2")  # whose name begins as the other's
    git("pack-refs", "--all")
    assert not (checkout / ".git" / "refs" / "heads" / "main").exists()
    assert checked_out(checkout) == made


def test_the_commit_of_a_worktree_is_its_own(checkout: Path, git: Git, tmp_path: Path) -> None:
    first = commit(git)
    git("worktree", "add", "-q", "-b", "other", str(tmp_path / "beside"))
    git("-C", str(tmp_path / "beside"), "commit", "-q", "--allow-empty", "-m", "two")
    assert checked_out(checkout) == first
    assert checked_out(tmp_path / "beside") == git("rev-parse", "other") != first


def test_no_commit_is_made_up(checkout: Path, git: Git) -> None:
    assert checked_out(checkout) is None
    git("init", "-q", "-b", "main")
    assert checked_out(checkout) is None  # nothing is committed yet
    for damaged in ("", "ref: refs/heads/none", "ref: ../../secret", "0123abc"):
        (checkout / ".git" / "HEAD").write_text(damaged)
        assert checked_out(checkout) is None
    (checkout / ".git" / "HEAD").write_bytes(b"\xff\xfe")
    assert checked_out(checkout) is None


def test_this_checkout_tells_its_commit_and_that_files_may_differ(repo_dir: Path) -> None:
    if not (repo_dir / ".git").exists():
        pytest.skip("these files are no git checkout")
    head = subprocess.run(
        ["git", "-C", str(repo_dir), "rev-parse", "HEAD"], capture_output=True, text=True
    )
    if head.returncode != 0:
        pytest.skip(f"git does not read this checkout: {head.stderr.strip()}")
    assert this_build() == Build(metadata.version("yolov8-fla"), f"{head.stdout.strip()}-checkout")


@pytest.mark.parametrize("package", ["server", "export"])
def test_commands_tell_their_version(repo_dir: Path, package: str) -> None:
    told = subprocess.run(
        [sys.executable, "-m", package, "--version"],
        cwd=repo_dir,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (told.returncode, told.stdout, told.stderr) == (0, f"{this_build()}\n", "")


def test_a_build_of_an_unknown_commit_says_so() -> None:
    assert str(Build("1.2.3", None)) == "yolov8-fla 1.2.3 (revision unknown)"
    assert str(Build("1.2.3", "abc-dirty")) == "yolov8-fla 1.2.3 (abc-dirty)"
