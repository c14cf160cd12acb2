"""`yolov8-fla-client` as a person or a script runs it."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from pycocotools.coco import COCO

from tests.support.artifacts import paint
from tests.support.flaky import Flaky, Reply, flaky
from tests.support.processes import LIMIT_S, ready
from tests.support.serving import RED, encode, one_cell

ENVIRONMENT = {
    name: value for name, value in os.environ.items() if not name.startswith("FLA_CLIENT_")
}
KEY = "a-key"


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "yolov8_fla_client", *map(str, arguments)]


def run(
    folder: Path, *arguments: str | Path, **variables: str
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(*arguments),
        cwd=folder,
        env=ENVIRONMENT | variables,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def rows(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def url(repo_dir: Path, artifact: Path) -> Iterator[str]:
    with ready(repo_dir, artifact, "--api-keys", KEY) as (_, http):
        yield str(http.base_url)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Four images, two of one name, and one that is broken."""
    images = tmp_path / "in"
    for name, content in {
        "a.png": one_cell(),
        "b.png": encode(paint((64, 32), {})),
        "z/a.png": one_cell((96, 64), (2, 0)),
        "z/y/a.jpg": encode(paint((64, 64), {(0, 0): RED}), ".jpg"),
        "z/broken.jpg": encode(paint((64, 64), {}), ".jpg")[:-20],
    }.items():
        path = images / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(content)
    return images


GOOD = ["a.png", "b.png", "z/a.png", "z/y/a.jpg"]


def detect(
    tree: Path, url: str, *arguments: str | Path, **variables: str
) -> "subprocess.CompletedProcess[str]":
    variables = {"FLA_CLIENT_API_KEY": KEY, "FLA_CLIENT_URL": url} | variables
    return run(tree.parent, "detect", *arguments, **variables)


def test_lines_on_standard_output_and_a_broken_image_by_name_on_the_other(
    tree: Path, url: str
) -> None:
    done = detect(tree, url, tree)
    assert done.returncode == 1
    found = rows(done.stdout)
    assert sorted(str(row["filename"]) for row in found) == sorted([*GOOD, "z/broken.jpg"])
    assert [row["filename"] for row in found if row["error"]] == ["z/broken.jpg"]
    assert done.stderr.splitlines()[0].startswith("z/broken.jpg: undecodable_image: the JPEG")
    assert done.stderr.splitlines()[-1] == "4 of 5 images done, 1 failed"


def test_all_done_is_told_by_the_exit_code(tree: Path, url: str) -> None:
    (tree / "z/broken.jpg").unlink()
    done = detect(tree, url, tree, "-o", "out.jsonl", "--conf", "0.5", "--classes", "RBC,1")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert done.stderr == "4 of 4 images done: out.jsonl\n"
    found = rows((tree.parent / "out.jsonl").read_text())
    assert found[0]["parameters"] == {"conf": 0.5, "classes": ["RBC", "1"]}
    quiet = detect(tree, url, tree, "-o", "out.jsonl", "--force", "--quiet")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")


def test_coco_labels_and_images_keep_the_tree(tree: Path, url: str) -> None:
    for form in ("coco", "yolo", "images"):
        done = detect(tree, url, tree, "--format", form, "-o", form)
        assert done.returncode == 1, done.stderr
        assert "z/broken.jpg: undecodable_image" in done.stderr
    out = tree.parent
    images = COCO(str(out / "coco")).imgs.values()
    assert sorted(each["file_name"] for each in images) == GOOD
    labels = sorted(
        str(each.relative_to(out / "yolo/labels")) for each in out.glob("yolo/labels/**/*.txt")
    )
    assert labels == ["a.txt", "b.txt", "z/a.txt", "z/y/a.txt"]
    assert (out / "yolo/labels/a.txt").read_text() == "0 0.750000 0.250000 0.500000 0.500000\n"
    assert (out / "yolo/labels/b.txt").read_text() == ""
    images = {str(each.relative_to(out / "images")): each for each in out.rglob("images/**/a.*")}
    assert sorted(images) == ["a.png", "z/a.png", "z/y/a.jpg"]
    assert images["a.png"].read_bytes().startswith(b"\x89PNG")
    assert images["z/y/a.jpg"].read_bytes().startswith(b"\xff\xd8")


def test_the_same_images_give_the_same_document(tree: Path, url: str) -> None:
    for name in ("one", "two"):
        detect(tree, url, tree, "--format", "coco", "-o", name, "--images-per-request", "1")
    assert (tree.parent / "one").read_bytes() == (tree.parent / "two").read_bytes()


def test_names_of_several_arguments_do_not_collide(tree: Path, url: str) -> None:
    done = detect(tree, url, tree / "a.png", tree / "z", tree / "z/y", tree / "z/a.png")
    names = [row["filename"] for row in rows(done.stdout)]
    assert names == ["a.png", "z/a.png", "z/broken.jpg", "z/y/a.jpg"]
    alone = detect(tree, url, "in/z/a.png")
    assert [row["filename"] for row in rows(alone.stdout)] == ["a.png"]


def test_images_are_not_written_over(tree: Path, url: str) -> None:
    before = (tree / "a.png").read_bytes()
    for out in (tree, tree / "z" / "..", tree.parent):
        done = detect(tree, url, tree, "--format", "images", "-o", out, "--force")
        assert done.returncode == 2
        assert "write them elsewhere" in done.stderr
    assert (tree / "a.png").read_bytes() == before


def test_results_inside_the_folder_are_not_images_of_it(tree: Path, url: str) -> None:
    out = tree / "found"
    for _ in range(2):
        detect(tree, url, tree, "--format", "images", "-o", out, "--force")
    assert not (out / "found").exists()
    assert (out / "z/y/a.jpg").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["missing"], "missing: there is no such file or folder"),
        (["in", "--format", "coco"], "--format coco needs -o OUT"),
        (["in", "--resume"], "--resume goes with"),
        (["in", "-o", "x", "--resume", "--force"], "one of the two"),
        (["in", "--save-conf"], "--save-conf goes with"),
        (["in", "-o", "in"], "in is a folder"),
        (["empty"], "there are no images in"),
        (["in", "--conf", "7"], "invalid_parameter: conf is 7.0"),
        (["in", "--classes", "RCB"], "invalid_parameter"),
        (["in", "--in-flight", "0"], "in_flight must be at least 1"),
        (["in", "--deadline", "0"], "deadline_s must be over 0"),
        (["in", "--url", "nowhere"], "'nowhere' is no address"),
        (["in", "--api-key", "wrong"], "FLA_CLIENT_API_KEY"),
    ],
)
def test_what_can_not_be_done_ends_with_2_and_a_reason(
    tree: Path, url: str, arguments: list[str], told: str
) -> None:
    (tree.parent / "empty").mkdir()
    done = detect(tree, url, *arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_server_that_is_not_there_ends_it_with_2(tree: Path) -> None:
    with flaky(lambda *_: None) as gone:
        pass
    done = detect(tree, gone.url, tree, "--deadline", "0.5")
    assert done.returncode == 2
    assert f"error: {gone.url}" in done.stderr


def test_health_is_for_scripts(tree: Path, url: str) -> None:
    done = run(tree, "health", "--url", url)
    assert done.returncode == 0
    assert json.loads(done.stdout)["model"] == "tiny"
    with flaky(lambda *_: None) as gone:
        pass
    done = run(tree, "health", "--url", gone.url)
    assert done.returncode == 2


def test_the_version_is_the_packages(tree: Path) -> None:
    assert run(tree, "--version").stdout.startswith("yolov8-fla-client 0.")


def test_a_reader_that_leaves_early_is_no_error(tree: Path, url: str) -> None:
    variables = ENVIRONMENT | {"FLA_CLIENT_API_KEY": KEY, "FLA_CLIENT_URL": url}
    with subprocess.Popen(
        command("detect", tree, "--quiet"),
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()
        assert process.wait(LIMIT_S) == 130


def holding(after: int, hold: threading.Event) -> Iterator[Flaky]:
    """A server that answers so many images, and then none until it is let."""

    def decide(request: int, images: Sequence[bytes]) -> Reply | None:
        if request < after or hold.is_set():
            return None
        return Reply(503, hang_until=hold)

    with flaky(decide) as server:
        yield server


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_stopped_goes_on_with_each_image_once(
    tmp_path: Path, sent: signal.Signals
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out.jsonl"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i}.jpg").write_bytes(b"image %d" % (i + 1))
    held = threading.Event()
    # One at a time: of two on their way the later may come first, and the lines wait for the other.
    flow = ["--images-per-request", "1", "--in-flight", "1", "--timeout", "15"]
    for server in holding(5, held):
        arguments: list[str | Path] = ["detect", folder, "--url", server.url, "-o", out, *flow]
        with subprocess.Popen(
            command(*arguments), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stderr is not None
            partial = tmp_path / "out.jsonl.partial"
            while process.poll() is None:
                if partial.exists() and len(partial.read_text().splitlines()) == 5:
                    break
            process.send_signal(sent)
            told = process.stderr.read()
            ended = process.wait(LIMIT_S)
        held.set()
        assert not out.exists()
        if sent == signal.SIGKILL:
            assert ended == -signal.SIGKILL
        else:
            assert ended == 130
            assert told.endswith(f"{partial}; --resume goes on from there\nstopped\n")
            assert "5 images were done" in told
        refused = run(tmp_path, *arguments)
        assert refused.returncode == 2
        assert "--resume goes on" in refused.stderr
        server.taken.clear()
        done = run(tmp_path, *arguments, "--resume")
        assert done.returncode == 0, done.stderr
        assert "7 of 7 images done, 5 were done before" in done.stderr
        assert len(server.taken) == 7
        assert sorted(str(row["filename"]) for row in rows(out.read_text())) == sorted(
            each.name for each in folder.iterdir()
        )
