import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from server.api import ui
from server.api.ui import read_samples


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "samples"
    folder.mkdir()
    return folder


def test_the_first_images_by_name_are_offered(folder: Path) -> None:
    for n in range(20):
        (folder / f"{n:02}.JPG").write_bytes(bytes([n]))
    for other in ("notes.md", "image.tiff", ".jpg"):
        (folder / other).write_bytes(b"other")
    (folder / "00-folder.png").mkdir()
    found = read_samples(folder.parent)
    assert list(found) == [f"{n:02}.JPG" for n in range(12)]
    assert found["03.JPG"] == b"\x03"


def test_they_lie_beside_a_file_and_in_a_folder_of_models(folder: Path) -> None:
    (folder / "a.webp").write_bytes(b"a")
    assert dict(read_samples(folder.parent)) == {"a.webp": b"a"}
    assert dict(read_samples(folder.parent / "model.onnx")) == {"a.webp": b"a"}
    assert dict(read_samples(folder.parent / "elsewhere" / "model.onnx")) == {}


def test_their_bytes_are_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ui, "MAX_BYTES", 10)
    monkeypatch.setattr(ui, "MAX_BYTES_IN_ALL", 15)
    for name, size in [("a.png", 10), ("b.png", 11), ("c.png", 6), ("d.png", 5)]:
        (folder / name).write_bytes(bytes(size))
    with capture_logs() as logs:
        assert list(read_samples(folder.parent)) == ["a.png", "d.png"]
    assert [(each["files"], each["first"]) for each in logs] == [(2, "'b.png'")]


def test_what_can_not_be_read_or_told_is_left_out(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")  # reading it would wait for ever
    (folder / "gone.png").symlink_to(folder / "nothing")
    (folder / os.fsdecode(b"\xff.png")).write_bytes(b"name")
    (folder / "empty.png").write_bytes(b"")
    (folder / "good.png").write_bytes(b"good")
    with capture_logs() as logs:
        assert dict(read_samples(folder.parent)) == {"good.png": b"good"}
    assert [(each["files"], each["first"]) for each in logs] == [(2, "'empty.png'")]


def test_a_folder_that_is_a_large_data_set_is_not_read_but_told_in_one_line(folder: Path) -> None:
    for n in range(500):
        with (folder / f"{n}.jpg").open("wb") as photo:
            photo.truncate(ui.MAX_BYTES + 1)  # without its blocks on the disk
    with capture_logs() as logs:
        assert read_samples(folder.parent) == {}
    assert [each["files"] for each in logs] == [500]


def test_a_folder_that_can_not_be_listed_is_told(tmp_path: Path) -> None:
    (tmp_path / "samples").symlink_to("samples")  # for ever
    with capture_logs() as logs:
        assert read_samples(tmp_path) == {}
    assert len(logs) == 1


def test_the_default_weights_have_the_repositorys_samples(repo_dir: Path) -> None:
    there = sorted(each.name for each in (repo_dir / "samples").glob("*.jpg"))
    assert list(read_samples(repo_dir / "weights")) == there
