import io
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image as Pillow
from yolov8_fla_client.bitmap import bmp_of
from yolov8_fla_client.images import (
    MAX_IMAGE_BYTES,
    ImageFile,
    NamedImage,
    as_sequence,
    count_below,
    images_below,
    name_of,
    read_image,
    read_or_tell,
)
from yolov8_fla_client.results import ImageResult

from server.vision.decode import decode


@pytest.mark.parametrize("hw", [(1, 1), (3, 5), (4, 4), (7, 2), (64, 33)])
def test_an_array_is_sent_without_loss(hw: tuple[int, int]) -> None:
    rgb = np.random.default_rng(1).integers(0, 256, (*hw, 3), np.uint8)
    assert np.array_equal(decode(bmp_of(rgb), max_pixels=10_000), rgb)
    bgr = cv2.imdecode(np.frombuffer(bmp_of(rgb), np.uint8), cv2.IMREAD_COLOR)
    assert bgr is not None
    assert np.array_equal(bgr[..., ::-1], rgb)


def test_an_array_may_be_a_view() -> None:
    rgb = np.random.default_rng(2).integers(0, 256, (20, 30, 3), np.uint8)
    view = rgb[::-2, 3:17:2, ::-1]
    assert np.array_equal(decode(bmp_of(view), max_pixels=10_000), view)


def test_what_gives_its_pixels_to_numpy_is_an_array() -> None:
    rgb = np.random.default_rng(3).integers(0, 256, (5, 6, 3), np.uint8)
    image = read_image(Pillow.fromarray(rgb))
    assert np.array_equal(decode(image.content, max_pixels=100), rgb)


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4), (1, 4, 4, 3), (0, 4, 3), (4, 40_000, 3)])
def test_an_array_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="an image must"):
        bmp_of(np.zeros(shape, np.uint8))


def test_an_array_of_other_samples_is_refused() -> None:
    with pytest.raises(TypeError, match=r"must be uint8, .*, not float64"):
        bmp_of(np.zeros((4, 4, 3)))


def test_all_kinds_of_images_become_bytes(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    file.write_bytes(b"abc")
    assert read_image(file) == ImageFile(str(file), b"abc")
    assert read_image(str(file)) == ImageFile(str(file), b"abc")
    assert read_image(b"abc") == ImageFile(None, b"abc")
    assert read_image(bytearray(b"abc")) == ImageFile(None, b"abc")
    assert read_image(memoryview(b"abc")) == ImageFile(None, b"abc")
    assert read_image(io.BytesIO(b"abc")) == ImageFile(None, b"abc")
    assert read_image(NamedImage("x", file)) == ImageFile("x", b"abc")
    with file.open("rb") as opened:
        assert read_image(opened) == ImageFile(None, b"abc")
        assert not opened.closed


@pytest.mark.parametrize("image", [3, None, [b"abc"], io.StringIO("abc")])
def test_what_is_no_image_is_refused(image: object) -> None:
    with pytest.raises(TypeError, match=r"not|text"):
        read_image(image)  # type: ignore[arg-type]


def test_one_image_is_several_of_one() -> None:
    array = np.zeros((2, 2, 3), np.uint8)
    for one in ("a.jpg", Path("a.jpg"), b"abc", io.BytesIO(), array, NamedImage("x", b"")):
        assert list(as_sequence(one)) == [one]
    assert list(as_sequence(["a.jpg", b"abc"])) == ["a.jpg", b"abc"]
    with pytest.raises(TypeError, match="not int"):
        as_sequence(3)  # type: ignore[arg-type]


def test_files_that_can_not_be_read_are_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "folder.jpg").mkdir()
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(MAX_IMAGE_BYTES + 1)
    for name in ("pipe", "loop", "folder", "huge", "missing"):
        path = tmp_path / f"{name}.jpg"
        with pytest.raises(OSError, match=r"\w"):
            read_image(path)
        told = read_or_tell(NamedImage(name, path))
        assert isinstance(told, ImageResult)
        assert told.error is not None
        assert (told.filename, told.error.code) == (name, "unreadable_file")
        assert told.error.detail


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in (
        "b.jpg",
        "a.PNG",
        "notes.txt",
        ".hidden.jpg",
        "z/a.jpg",
        "z/y/a.jpg",
        ".git/a.jpg",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(b"abc")
    (tmp_path / "link.jpg").symlink_to("b.jpg")
    (tmp_path / "around").symlink_to(".")
    return tmp_path


def names(folder: Path, **options: object) -> list[str | None]:
    return [each.name for each in images_below(folder, **options)]  # type: ignore[arg-type]


def test_a_folders_images_are_found_in_order_with_names_relative_to_it(tree: Path) -> None:
    assert names(tree) == ["a.PNG", "b.jpg", "link.jpg", "z/a.jpg", "z/y/a.jpg"]
    assert all(read_image(each).content == b"abc" for each in images_below(tree))
    assert count_below(tree) == 5


def test_other_files_can_be_asked_for_and_folders_left_out(tree: Path) -> None:
    assert "notes.txt" in names(tree, all_files=True)
    assert names(tree, left_out=[tree / "z"]) == ["a.PNG", "b.jpg", "link.jpg"]
    assert names(tree, left_out=[tree / "z" / "y"])[-1] == "z/a.jpg"


def test_names_that_are_not_utf8_can_be_written(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.jpg"
    Path(os.fsdecode(path)).write_bytes(b"abc")
    (found,) = images_below(tmp_path)
    assert found.name == r"caf\xe9.jpg"
    assert read_image(found).content == b"abc"
    assert (name_of(os.fsdecode(path)) or "").endswith(r"caf\xe9.jpg")


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        names(tmp_path / "missing")
