"""`python -m server.ray.detect_folder` as a process, on a Ray cluster of two nodes."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ray", reason="needs the extra `ray`")
import pyarrow.dataset as ds

from benchmarks.micro.ray_nodes import TwoNodes, two_nodes
from tests.support.artifacts import tiny_artifact
from tests.support.serving import RED, encode, one_cell

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
LIMIT_S = 100
IMAGES = 400


@pytest.fixture(scope="module")
def nodes() -> Iterator[TwoNodes]:
    with two_nodes() as started:
        yield started


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_artifact(tmp_path_factory.mktemp("artifact") / "tiny.onnx")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with one cell each, in one of four places, and some broken ones, in two folders."""
    folder = tmp_path_factory.mktemp("photos")
    # Noise: slow enough to decode that the job is not over before a node is killed.
    noise = np.random.default_rng(0).integers(0, 128, (512, 512, 3), np.uint8)
    for i in range(4):
        image = noise.copy()
        row, column = (i // 2) * 256, (i % 2) * 256
        image[row : row + 256, column : column + 256] = RED
        (folder / f"cell{i}.image").write_bytes(encode(image))
    for i in range(IMAGES):
        path = folder / ("even" if i % 2 == 0 else "odd") / f"{i:03}.png"
        path.parent.mkdir(exist_ok=True)
        if i % 40 == 7:
            path.write_bytes(one_cell()[:-30])
        else:
            path.hardlink_to(folder / f"cell{i % 4}.image")
    return folder


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "server.ray.detect_folder", *map(str, arguments)]


def run(repo: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        cwd=repo,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def parts(out: Path) -> set[Path]:
    return set(out.glob("part-*.parquet"))


def until_some_parts(job: "subprocess.Popen[str]", out: Path, count: int) -> None:
    """The job tells of parts by their files, which bring no event."""
    deadline = time.monotonic() + LIMIT_S
    while len(parts(out)) < count:
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def rows_of(out: Path) -> list[dict[str, Any]]:
    return list(ds.dataset(str(out), format="parquet").to_table().to_pylist())


def assert_every_image_once_and_right(out: Path) -> None:
    rows = {row["path"]: row for row in rows_of(out)}
    assert len(rows_of(out)) == len(rows) == IMAGES
    for i in range(IMAGES):
        row = rows[f"{'even' if i % 2 == 0 else 'odd'}/{i:03}.png"]
        if i % 40 == 7:
            assert (row["error_code"], row["detections"]) == ("undecodable_image", None)
            continue
        assert row["error_code"] is None
        assert (row["width"], row["height"]) == (512, 512)
        x, y = i % 4 % 2 * 256, i % 4 // 2 * 256
        found = [[each[name] for name in ("x1", "y1", "x2", "y2")] for each in row["detections"]]
        assert found == [[x, y, x + 256, y + 256]], row
        assert row["detections"][0]["class_name"] == "RBC"


# The tests use one cluster, whose second node is alive up to the last of them.


def test_a_job_that_is_stopped_or_killed_goes_on_when_it_is_started_again(
    nodes: TwoNodes, repo_dir: Path, photos: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.parquet"
    arguments = [photos, out, "--model", model, "--images-per-part", "8", "--device", "cpu"]
    done: dict[Path, int] = {}
    for how, code in ((signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL)):
        with subprocess.Popen(
            command(*arguments, "--address", nodes.address),
            cwd=repo_dir,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as job:
            until_some_parts(job, out, len(done) + 5)
            job.send_signal(how)
            _, log = job.communicate(timeout=LIMIT_S)
        assert job.returncode == code, log
        told = "stopped; the same command goes on from here" in log
        assert told == (how == signal.SIGTERM), log
        # The actors of a driver that is gone end, too, each in the middle of something.
        assert {path: path.stat().st_mtime_ns for path in done} == done
        done = {path: path.stat().st_mtime_ns for path in parts(out)}
        assert len(done) < IMAGES / 8
        assert not (out / "_SUCCESS").exists()

    again = run(repo_dir, *arguments, "--address", nodes.address)
    assert again.returncode == 0, again.stderr
    assert "were done before" in again.stderr
    assert f"done: {IMAGES} images" in again.stderr
    assert "10 without detections: undecodable_image" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert_every_image_once_and_right(out)
    assert (out / "_SUCCESS").exists()

    # Where no Ray answers: it is not asked.
    finished = run(repo_dir, *arguments, "--address", "127.0.0.1:1")
    assert finished.returncode == 0, finished.stderr
    assert f"all {IMAGES} images were done before" in finished.stderr
    assert f"done: {IMAGES} images" in finished.stderr
    other = run(repo_dir, *arguments, "--address", "127.0.0.1:1", "--conf", "0.9")
    assert other.returncode == 2
    assert "holds results of another job" in other.stderr


def test_workers_that_fit_on_no_node_are_refused(
    nodes: TwoNodes, repo_dir: Path, photos: Path, model: Path, tmp_path: Path
) -> None:
    arguments = [photos, tmp_path / "out.parquet", "--model", model, "--address", nodes.address]
    refused = run(repo_dir, *arguments, "--cpus-per-worker", "64")
    assert refused.returncode == 2
    assert "error: no node of the cluster has 64 CPUs and 0 GPUs for a worker" in refused.stderr
    assert not (tmp_path / "out.parquet").exists()


def test_every_image_is_in_the_results_once_though_a_node_is_killed_half_way(
    nodes: TwoNodes, repo_dir: Path, photos: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.parquet"
    arguments = [photos, out, "--model", model, "--address", nodes.address]
    with subprocess.Popen(
        command(*arguments, "--images-per-part", "4"),
        cwd=repo_dir,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as job:
        until_some_parts(job, out, 20)
        nodes.kill_second()
        there = len(parts(out))
        _, log = job.communicate(timeout=LIMIT_S)
    assert there < IMAGES / 4, "the job was over before the node was killed"
    assert job.returncode == 0, log
    assert "2 workers on cpu" in log
    assert_every_image_once_and_right(out)
    assert not [each for each in out.rglob(".*") if each.is_file()]
