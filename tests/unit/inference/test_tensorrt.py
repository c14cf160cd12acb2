"""Where TensorRT is found, and where it keeps what it builds."""

import logging
from pathlib import Path

import onnxruntime
import pytest

from server.errors import ProviderUnavailable, SettingsInvalid
from server.inference.artifact import Artifact, load_artifact
from server.inference.cuda.tensorrt import LIBRARIES, engine_folder, load_libraries
from tests.support.artifacts import tiny_artifact


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return load_artifact(tiny_artifact(tmp_path / "tiny.onnx"))


def test_each_artifact_and_release_has_a_folder_of_its_own(
    tmp_path: Path, artifact: Artifact
) -> None:
    other = load_artifact(tiny_artifact(tmp_path / "other.onnx", name="other"))
    folders = [engine_folder(tmp_path / "cache", each) for each in (artifact, other, artifact)]
    assert folders[0] == folders[2] != folders[1]
    assert folders[0] == tmp_path / "cache" / f"{artifact.version}-{onnxruntime.__version__}"
    assert folders[0].is_dir()
    assert list(folders[0].iterdir()) == []


def test_by_default_it_is_the_users_cache(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = engine_folder(None, artifact)
    assert folder is not None
    assert folder.parent == tmp_path / ".cache" / "yolov8-fla" / "tensorrt"


def test_a_folder_that_was_set_and_cannot_be_written_is_refused(
    artifact: Artifact, tmp_path: Path
) -> None:
    occupied = tmp_path / "file"
    occupied.touch()
    with pytest.raises(SettingsInvalid, match=r"tensorrt_cache: .*file cannot be written"):
        engine_folder(occupied, artifact)


def test_without_a_cache_of_the_user_there_is_none_and_a_warning(
    artifact: Artifact,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING, logger="server.inference.cuda.tensorrt"):
        assert engine_folder(None, artifact) is None
    (record,) = caplog.records
    assert "builds anew at each start" in record.getMessage()


def test_what_the_system_has_is_taken() -> None:
    loaded: list[str] = []
    load_libraries(load=loaded.append)
    assert tuple(loaded) == LIBRARIES


def test_what_pip_has_put_beside_it_is_taken_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "libraries_of_a_test"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    loaded: list[str] = []

    def load(path: str) -> None:
        if "/" not in path:
            raise OSError(f"{path}: not found")
        loaded.append(path)

    load_libraries(package=package.name, load=load)
    assert loaded == [str(package / library) for library in LIBRARIES]


def test_a_missing_tensorrt_is_an_error_that_says_what_to_install() -> None:
    with pytest.raises(ProviderUnavailable, match=r"libnone\.so\.10.*tensorrt-cu13"):
        load_libraries(["libnone.so.10"], "no_package_of_this_name")
