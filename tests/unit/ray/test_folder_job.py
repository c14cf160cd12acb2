"""A job over a folder: its list, its parts, and what a folder of results may not be."""

import os
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="needs the extra `ray`")
from pyarrow import fs

from server.errors import TooLarge
from server.ray.detect_folder.__main__ import main
from server.ray.detect_folder.errors import JobRefused, JobStopped
from server.ray.detect_folder.folder_job import FolderJob, Request, delete_results, path_inside
from server.ray.detect_folder.folders import (
    Folder,
    LocalFolder,
    RemoteFolder,
    open_folder,
    write_bytes,
)
from server.ray.detect_folder.image_list import ROWS_AT_ONCE, read_list, write_list
from server.vision.nms import DetectParameters
from tests.support.artifacts import tiny_artifact

ID = "0123abcd"  # of a list


def request_for(source: Path) -> Request:
    return Request(
        source=str(source),
        all_files=False,
        model="m.onnx",
        model_name="m",
        model_version="0123456789ab",
        precision="fp32",
        parameters=DetectParameters(classes=(0, 2)),
        max_image_bytes=1000,
        max_image_pixels=1000,
        jpeg_dct_scaling=True,
    )


def fill(folder: Path, names: list[str]) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def begin(request: Request, out: Path, images_per_part: int | None = None) -> FolderJob:
    return FolderJob.begin(request, str(out), images_per_part=images_per_part, left_out=None)


def found(request: Request, out: Path, images_per_part: int | None = None) -> FolderJob | None:
    return FolderJob.open(request, str(out), images_per_part=images_per_part)


def remote() -> RemoteFolder:
    filesystem = fs._MockFileSystem()
    filesystem.create_dir("bucket/photos")
    return RemoteFolder("mock://bucket/photos", filesystem, "bucket/photos")


@pytest.mark.parametrize("kind", ["local", "remote"])
def test_a_folder_gives_back_what_was_written_whole(kind: str, tmp_path: Path) -> None:
    folder: Folder = LocalFolder(tmp_path) if kind == "local" else remote()
    write_bytes(folder, "a/b.jpg", b"12345")
    write_bytes(folder, "a/b.jpg", b"1234")
    write_bytes(folder, "c.jpg", b"")
    write_bytes(folder, ".hidden", b"")
    assert sorted(folder.files()) == [b"a/b.jpg", b"c.jpg"]
    assert set(folder.names()) == {"a", "c.jpg", ".hidden"}
    assert folder.read(b"a/b.jpg", 4) == b"1234"
    with pytest.raises(TooLarge, match="4 bytes; max_image_bytes is 3") as caught:
        folder.read(b"a/b.jpg", 3)
    assert caught.value.code == "body_too_large"
    with folder.open("a/b.jpg") as file:
        file.seek(2)
        assert file.read() == b"34"
    folder.delete("c.jpg")
    folder.delete("c.jpg")
    assert list(folder.files()) == [b"a/b.jpg"]
    with pytest.raises(FileNotFoundError):
        folder.read(b"c.jpg", 10)


def test_a_file_that_can_not_be_written_whole_is_not_there(tmp_path: Path) -> None:
    class Broken(BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell():
                raise OSError("the source broke off")
            return super().read(2)

    with pytest.raises(OSError, match="broke off"):
        LocalFolder(tmp_path).write("part", Broken(b"1234"))
    assert list(tmp_path.iterdir()) == []


def test_links_to_files_are_followed_and_links_to_folders_are_not(tmp_path: Path) -> None:
    fill(tmp_path / "photos", ["a.jpg"])
    (tmp_path / "photos" / "again.jpg").symlink_to(tmp_path / "photos" / "a.jpg")
    (tmp_path / "photos" / "round").symlink_to(tmp_path / "photos")
    assert sorted(LocalFolder(tmp_path / "photos").files()) == [b"a.jpg", b"again.jpg"]


def test_odd_names_and_links_to_nowhere_are_listed(tmp_path: Path) -> None:
    fill(tmp_path, ["new\nline.jpg", "folder.jpg/in.jpg"])
    (tmp_path / "itself.jpg").symlink_to("itself.jpg")
    (tmp_path / "gone.jpg").symlink_to("nowhere.jpg")
    folder = LocalFolder(tmp_path)
    names = [b"folder.jpg/in.jpg", b"gone.jpg", b"itself.jpg", b"new\nline.jpg"]
    assert sorted(folder.files()) == names
    for name in names[1:3]:
        with pytest.raises(OSError, match=r"No such file|symbolic links"):
            folder.read(name, 10)


def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(OSError, match="not a regular file"):
        LocalFolder(tmp_path).read(b"pipe.jpg", 10)


def test_an_address_without_a_file_system_is_refused() -> None:
    with pytest.raises(JobRefused, match="nonsense://"):
        open_folder("nonsense://bucket/photos")


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(JobRefused, match="no password in an address") as caught:
        open_folder("s3://name:very-secret@bucket/photos")
    assert "very-secret" not in str(caught.value)


def test_the_list_holds_images_by_their_names_and_counts_the_others(tmp_path: Path) -> None:
    names = ["b/1.JPG", "b/2.tiff", "a.png", "a.txt", ".hidden.jpg", "b/.x/c.jpg", "out/p.jpg"]
    source = LocalFolder(fill(tmp_path / "photos", names))
    out = LocalFolder(tmp_path / "out.parquet")
    listed = write_list(source, out, ID, all_files=False, left_out=b"out")
    assert listed == (3, 1)
    assert sorted(read_list(out, ID, 0, 3)) == [b"a.png", b"b/1.JPG", b"b/2.tiff"]
    assert write_list(source, out, ID, all_files=True, left_out=None).images == 5


def test_a_name_that_is_no_text_is_listed_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path / "photos") + b"/\xe9.jpg")).write_bytes(b"x")
    source, out = LocalFolder(tmp_path / "photos"), LocalFolder(tmp_path / "out")
    write_list(source, out, ID, all_files=False, left_out=None)
    assert read_list(out, ID, 0, 1) == [b"\xe9.jpg"]
    assert source.read(b"\xe9.jpg", 10) == b"x"


def test_slices_of_the_list_are_the_list(tmp_path: Path) -> None:
    names = [f"{i:05}.jpg" for i in range(ROWS_AT_ONCE * 2 + 7)]
    source, out = LocalFolder(fill(tmp_path / "photos", names)), LocalFolder(tmp_path / "out")
    write_list(source, out, ID, all_files=False, left_out=None)
    everything = read_list(out, ID, 0, len(names))
    assert sorted(everything) == [name.encode() for name in names]
    size = 333  # divides neither the list nor a row group
    starts = range(0, len(names), size)
    slices = [read_list(out, ID, start, min(start + size, len(names))) for start in starts]
    assert [path for each in slices for path in each] == everything


def test_a_job_is_found_again_with_what_is_missing_of_it(tmp_path: Path) -> None:
    request = request_for(fill(tmp_path / "photos", [f"{i}.jpg" for i in range(25)]))
    out = tmp_path / "out.parquet"
    assert found(request, out) is None
    job = begin(request, out, 10)
    assert found(request, out) == job == found(request, out, 10)
    assert (job.images, job.parts, job.slice_of(2)) == (25, 3, (20, 25))
    assert job.missing() == [0, 1, 2]
    job.write_part(1, b"")
    assert job.missing() == [0, 2]
    assert job.images_in(job.missing()) == 15


def test_what_a_killed_worker_left_is_gone_when_all_is_done(tmp_path: Path) -> None:
    request = request_for(fill(tmp_path / "photos", ["a.jpg"]))
    out = tmp_path / "out.parquet"
    job = begin(request, out)
    name = job.part_name(0)
    fill(out, [name, f".{name}.0123456789abcdef", ".mine"])
    job.finish()
    assert sorted(each.name for each in out.iterdir()) == [
        ".mine",
        "_SUCCESS",
        "_job",
        name,
    ]


def test_a_job_whose_place_was_taken_changes_nothing_of_the_new_one(tmp_path: Path) -> None:
    photos = fill(tmp_path / "photos", ["b.jpg"])
    request, out = request_for(photos), tmp_path / "out.parquet"
    old = begin(request, out)
    late = out / old.part_name(0)
    delete_results(str(out))
    new = begin(request_for(fill(photos, ["a.jpg"])), out)
    # What one of its workers on a lost node may still do, or do before it could know.
    with pytest.raises(JobStopped, match="the list of another job"):
        old.paths_of(0)
    with pytest.raises(JobStopped, match="another job was begun in"):
        old.write_part(0, b"of the old list")
    late.write_bytes(b"of the old list")
    assert new.missing() == [0]
    with pytest.raises(JobStopped, match="another job was begun in"):
        old.finish()
    assert sorted(new.paths_of(0)) == [b"a.jpg", b"b.jpg"]
    new.write_part(0, b"new")
    new.finish()
    assert [each.read_bytes() for each in out.glob("part-*")] == [b"new"]


def test_a_job_that_was_killed_while_it_listed_begins_anew(tmp_path: Path) -> None:
    request = request_for(fill(tmp_path / "photos", ["a.jpg"]))
    out = tmp_path / "out.parquet"
    begin(request, out)
    (out / "_job" / "job.json").unlink()  # which is written last
    assert found(request, out) is None


def test_results_of_another_job_are_refused_with_the_difference(tmp_path: Path) -> None:
    request = request_for(fill(tmp_path / "photos", ["a.jpg"]))
    out = tmp_path / "out.parquet"
    begin(request, out)
    other = replace(request, parameters=DetectParameters(conf=0.5, classes=(0, 2)))
    with pytest.raises(JobRefused, match=r"conf is 0\.25 there and 0\.5 here"):
        found(other, out)
    with pytest.raises(JobRefused, match="model_version is 0123456789ab there and x here"):
        found(replace(request, model_version="x"), out)
    with pytest.raises(JobRefused, match="images_per_part is 25 there and 7 here"):
        found(request, out, 7)
    # The same file in another place gives the same results.
    assert found(replace(request, model="elsewhere/m.onnx"), out) is not None


def test_a_folder_of_something_else_is_refused_and_nothing_in_it_deleted(tmp_path: Path) -> None:
    request = request_for(fill(tmp_path / "photos", ["a.jpg"]))
    out = fill(tmp_path / "mine", ["letter.txt"])
    with pytest.raises(JobRefused, match="something else than results"):
        found(request, out)
    with pytest.raises(JobRefused, match="nothing is deleted"):
        delete_results(str(out))
    assert (out / "letter.txt").exists()
    parts = fill(tmp_path / "parts", ["part-000000-0123abcd.parquet"])
    with pytest.raises(JobRefused, match=r"results without _job/job\.json"):
        found(request, parts)


def test_deleting_results_leaves_what_is_not_of_the_job(tmp_path: Path) -> None:
    request = request_for(fill(tmp_path / "photos", ["a.jpg"]))
    out = tmp_path / "out.parquet"
    job = begin(request, out)
    job.finish()
    fill(out, [job.part_name(0), "notes.txt"])
    delete_results(str(out))
    assert [each.name for each in out.rglob("*") if each.is_file()] == ["notes.txt"]
    delete_results(str(tmp_path / "nothing"))


def test_a_folder_without_images_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    request = request_for(fill(tmp_path / "photos", ["a.txt", "b.txt"]))
    out = tmp_path / "out.parquet"
    with pytest.raises(JobRefused, match=r"no images, only 2 files of other names \(--all-files"):
        begin(request, out)
    assert found(request, out) is None


def test_parts_are_small_enough_to_share_out_and_large_enough_to_read(tmp_path: Path) -> None:
    for images, size in ((3, 25), (6000, 30)):
        source = fill(tmp_path / str(images), [f"{i}.jpg" for i in range(images)])
        assert begin(request_for(source), tmp_path / f"{images}.out").images_per_part == size


def test_results_inside_the_images_are_known(tmp_path: Path) -> None:
    assert path_inside("/photos/out.parquet", "/photos") == b"out.parquet"
    assert path_inside("/out.parquet", "/photos") is None
    assert path_inside("/photos2/out", "/photos") is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "out"], "error: nowhere: there is no such folder"),
        ([".", "out", "--model", "nowhere.onnx"], "error: "),
        ([".", "out", "--address", "127.0.0.1:1"], "error: the Ray cluster at 127.0.0.1:1 can't"),
        (["what://photos", "out"], "error: what://photos: "),
        ([".", "tiny.onnx"], "error: tiny.onnx: Not a directory"),
    ],
)
def test_what_can_not_begin_is_refused_in_one_line_before_ray_starts(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if "--model" not in arguments:
        arguments = [*arguments, "--model", str(tiny_artifact(tmp_path / "tiny.onnx"))]
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(message)
    assert not (tmp_path / "out").exists()
