import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.load import contestants
from benchmarks.load.contestants import Arrangement, Thresholds
from benchmarks.load.http_client import Answer, Client, image_request
from benchmarks.load.loops import run_light
from benchmarks.load.process import DidNotStart, free_port, running
from benchmarks.serving.__main__ import square_only
from benchmarks.serving.cases import Case, Entry
from benchmarks.serving.limit import LimitArrangement, Pipeline, arrangements
from benchmarks.serving.measure import Bench, shapes
from benchmarks.serving.sample_images import (
    Image,
    box_counts,
    counted,
    read_images,
    widened,
)
from server.inference.artifact import read_metadata
from server.vision.nms import DetectParameters
from tests.support.artifacts import paint, tiny_artifact
from tests.support.serving import encode, one_cell

USUAL = Thresholds()
TWO = encode(paint((64, 64), {(0, 0): (255, 0, 0), (1, 1): (255, 0, 0)}))
IMAGES = [Image("one", one_cell(), (64, 64)), Image("two", TWO, (64, 64))]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_artifact(tmp_path_factory.mktemp("model") / "tiny.onnx")


def bench(folder: Path) -> Bench:
    return Bench(IMAGES, IMAGES, seconds=0.3, warm_s=0.1, envs=folder)


def case(model: Path, clients: int) -> Case:
    entries = (Entry("ours", "ours", model), Entry("limit", "limit", model))
    return Case("saturated", "", clients, False, USUAL, 0.0, entries)


def test_our_server_is_started_measured_and_ended(model: Path, tmp_path: Path) -> None:
    measured = bench(tmp_path)
    of = case(model, 2)
    row = measured.row(of, of.entries[0], model)
    assert row["statuses"].keys() == {"200"}
    assert row["wrong"] == {}
    assert row["images_per_s"] > 0
    assert row["server_cpu_ms_per_image"] > 0
    assert row["start_s"] > 0


def test_the_limit_names_the_arrangement_that_counts(model: Path, tmp_path: Path) -> None:
    of = case(model, 1)
    row = bench(tmp_path).row(of, of.entries[1], model)
    assert row["p50_ms"] == min(row["tried"].values())


def test_a_peer_gives_the_boxes_that_we_give(model: Path) -> None:
    port = free_port()
    once = Arrangement(workers=1, threads=1, spinning=False)
    peer = contestants.peer("fastapi", Path(sys.executable), model, USUAL, once, port)
    with running(peer, image_request(peer.path, TWO)) as server:

        async def ask() -> list[Answer]:
            async with Client(server.url) as client:
                return [await client.ask(image_request(peer.path, each.data)) for each in IMAGES]

        answers = run_light(ask())
    counts = box_counts(model, IMAGES, USUAL)
    assert counts == [1, 2]
    for answer, count in zip(answers, counts, strict=True):
        assert counted(count, 0)(answer) is None
        assert counted(count + 1, 0)(answer) == "other number of boxes"
        assert counted(count + 1, 0.5)(answer) is None


def test_a_server_that_ends_says_why(tmp_path: Path) -> None:
    missing = contestants.ours(tmp_path / "missing.onnx", USUAL, free_port())
    with (
        pytest.raises(DidNotStart, match=r"missing\.onnx"),
        running(missing, image_request(missing.path, TWO)),
    ):
        pytest.fail("it runs")


def test_the_square_copy_is_the_same_graph_with_one_bucket(model: Path, tmp_path: Path) -> None:
    square = square_only(model, tmp_path / "square.onnx")
    assert read_metadata(square).buckets == ((64, 64),)
    assert read_metadata(square).graph_sha256 == read_metadata(model).graph_sha256
    wide = Image("wide", b"", (30, 64))
    assert shapes(model, [wide, IMAGES[0]]) == {"32x64": 1, "64x64": 1}
    assert shapes(square, [wide, IMAGES[0]]) == {"64x64": 2}


@pytest.mark.parametrize("arrangement", arrangements(2), ids=str)
def test_every_arrangement_of_the_limit_passes_images_of_several_shapes(
    model: Path, arrangement: LimitArrangement
) -> None:
    images = [one_cell(), one_cell((32, 64), (0, 1))]
    rate = Pipeline(model, images, DetectParameters()).rate(arrangement, 0.1, 0.02)
    assert rate.images_per_s > 0
    assert LimitArrangement.parse(str(arrangement)) == arrangement


def test_images_are_640_by_480_and_their_wide_form_is_16_to_9(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8)
    (tmp_path / "b.jpg").write_bytes(encode(noise, ".jpg"))
    (tmp_path / "a.jpg").write_bytes(encode(noise[:400], ".jpg"))
    (image,) = read_images(tmp_path, 5)
    assert image.name == "b.jpg"
    assert widened(image).hw == (360, 640)
    (tmp_path / "b.jpg").unlink()
    with pytest.raises(ValueError, match="no JPEG of 640 x 480"):
        read_images(tmp_path, 5)
