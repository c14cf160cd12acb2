import hashlib
import subprocess
import tomllib
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
    assert found == Release(
        version="1.2.0",
        commit=git(checkout, "rev-parse", "HEAD"),
        epoch=int(git(checkout, "log", "-1", "--format=%ct")),
        tagged=False,
        extras=("cpu", "gpu"),
    )
    git(checkout, "tag", "-a", "v1.2.0", "-m", "1.2.0")
    git(checkout, "tag", "nightly")  # a tag that names no version says nothing against one
    assert release.examine(checkout).tagged


@pytest.mark.parametrize("file", ["CHANGELOG.md", "new.py"])
def test_files_that_no_commit_has_are_refused(checkout: Path, file: str) -> None:
    (checkout / file).write_text("changed")
    with pytest.raises(Refused, match=f"files differ from the commit: {file}$"):
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
    ("version", "text"),
    [
        ("1.3.0", "no section"),
        ("1.2", "no section"),
        ("1.1.0", "tells nothing of"),
        ("1.0.0", "no section"),  # it has no date
    ],
)
def test_a_version_without_a_dated_section_that_tells_something_is_refused(
    version: str, text: str
) -> None:
    release.refuse_untold("1.2.0", CHANGELOG)
    with pytest.raises(Refused, match=text):
        release.refuse_untold(version, CHANGELOG)


def test_manifests_that_take_another_versions_image_are_refused(checkout: Path) -> None:
    file = checkout / "deploy" / "overlay" / "kustomization.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(
        "images: [{name: yolov8-fla, newTag: 1.2.0-cpu}, {name: yolov8-fla-model, newTag: '1'}]"
    )
    commit(checkout)
    assert release.examine(checkout).version == "1.2.0"
    file.write_text("images: [{name: yolov8-fla, newTag: 1.1.0-cpu}]")
    commit(checkout)
    with pytest.raises(Refused, match=r"overlay/kustomization\.yaml takes the image 1\.1\.0-cpu"):
        release.examine(checkout)


@pytest.mark.parametrize("version", ["", "next", "1.0+mine", "v1.0", "1.0-rc1", "01.0"])
def test_a_version_that_tags_can_t_carry_as_it_is_is_refused(version: str) -> None:
    assert release.checked_version("1.0rc1") == "1.0rc1"
    with pytest.raises(Refused):
        release.checked_version(version)


def test_this_projects_version_can_be_released_with_its_manifests(repo_dir: Path) -> None:
    version = tomllib.loads((repo_dir / "pyproject.toml").read_text())["project"]["version"]
    assert release.checked_version(version) == version
    for file in (repo_dir / "deploy").rglob("kustomization.yaml"):
        release.refuse_other_images(version, file, file.read_text())


def test_what_is_built_are_the_files_of_the_commit_and_no_others(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    commit_made = git(checkout, "rev-parse", "HEAD")
    (checkout / ".git" / "info").mkdir(exist_ok=True)
    (checkout / ".git" / "info" / "exclude").write_text("*.onnx\n")
    (checkout / "stray.onnx").write_text("overlooked by git, and so by its status")
    assert release.examine(checkout).commit == commit_made
    (checkout / "CHANGELOG.md").write_text("changed while images are built")
    folder = tmp_path_factory.mktemp("source")
    assert release.exported(checkout, commit_made, folder) == folder
    files = {path.name: path.read_text() for path in folder.iterdir()}
    assert files == {"CHANGELOG.md": CHANGELOG, "pyproject.toml": PROJECT}


def test_files_of_a_commit_that_is_not_there_are_an_error(checkout: Path, tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        release.exported(checkout, "0" * 40, tmp_path / "source")


def test_the_sums_are_those_that_sha256sum_checks(tmp_path: Path) -> None:
    for name, content in (("b.whl", b"wheel"), ("a.tar.gz", b"source")):
        (tmp_path / name).write_bytes(content)
    release.write_sums(tmp_path)
    release.write_sums(tmp_path)  # its own file is not among them
    assert (tmp_path / "SHA256SUMS").read_text() == (
        f"{hashlib.sha256(b'source').hexdigest()}  a.tar.gz\n"
        f"{hashlib.sha256(b'wheel').hexdigest()}  b.whl\n"
    )
    command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    assert subprocess.run(command, cwd=tmp_path, stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize("tagged", [True, False])
def test_the_last_words_tell_what_is_left_to_publish(tagged: bool) -> None:
    made = Release("1.2.0", "c" * 40, 0, tagged, ("cpu",))
    told = release.farewell(made, ["yolov8-fla:1.2.0-cpu sha256:1 5"], "audited", ["a.whl"])
    assert "Nothing was published." in told
    assert ("git tag -a v1.2.0" in told) is not tagged
    assert "git push origin v1.2.0" in told
    tagged_by_id = "docker tag sha256:1 REGISTRY/yolov8-fla:1.2.0-cpu"
    assert f"{tagged_by_id} && docker push REGISTRY/yolov8-fla:1.2.0-cpu\n" in told
