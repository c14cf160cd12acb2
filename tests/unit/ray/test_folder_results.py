"""Detections of files without Ray: what becomes of good, bad and hostile ones, and as rows."""

import json
from dataclasses import replace
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("ray", reason="needs the extra `ray`")
import pyarrow.dataset as ds
from pyarrow import parquet

from server.inference.artifact import load_artifact
from server.inference.detector import ImageDetections
from server.inference.engine import Engine
from server.ray.detect_folder.detecting import Detecting, EngineLost, Limits, Outcome
from server.ray.detect_folder.folder_job import FolderJob, Request
from server.ray.detect_folder.folders import LocalFolder
from server.ray.detect_folder.part_actor import PartActor
from server.ray.detect_folder.passes import PartDone
from server.ray.detect_folder.progress import Progress, counted, duration
from server.ray.detect_folder.result_rows import ImageError, to_parquet
from server.ray.memory_share import share_of
from server.settings import Settings
from server.vision.nms import Detections, DetectParameters
from tests.support.artifacts import CLASS_NAMES, POISON, paint, tiny_artifact
from tests.support.serving import RED, LosingSession, NotANumber, encode, one_cell

LIMITS = Limits(bytes=1_000_000, pixels=100_000, dct_scaling=True)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_artifact(tmp_path_factory.mktemp("artifact") / "tiny.onnx")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder


def detected(
    photos: Path, artifact: Path, names: list[str], limits: Limits = LIMITS
) -> list[Outcome]:
    engine = Engine.open([load_artifact(artifact)], device="cpu", cpus=2, max_batch_size=4)
    parameters = DetectParameters()
    with Detecting(engine, LocalFolder(photos), parameters, limits, cpus=2) as detecting:
        return detecting.detect([name.encode() for name in names])


def codes(outcomes: list[Outcome]) -> list[str | None]:
    return [each.code if isinstance(each, ImageError) else None for each in outcomes]


def test_every_file_has_its_own_outcome_in_the_order_asked_for(
    photos: Path, artifact: Path
) -> None:
    names = [f"{i}.png" for i in range(100)]
    for i, name in enumerate(names):
        (photos / name).write_bytes(one_cell(cell=(i % 2, (i // 2) % 2)))
    outcomes = detected(photos, artifact, names)
    for i, outcome in enumerate(outcomes):
        assert isinstance(outcome, ImageDetections)
        x, y = (i // 2) % 2 * 32, i % 2 * 32
        assert outcome.detections.boxes.tolist() == [[x, y, x + 32, y + 32]]


def test_what_is_wrong_with_a_file_is_told_with_the_code_of_the_server(
    photos: Path, artifact: Path
) -> None:
    whole = one_cell()
    sideways = cv2.imencode(".png", np.zeros((400, 400, 3), np.uint8))[1].tobytes()
    for name, content in {
        "good.png": whole,
        "cut.png": whole[:-20],
        "text.jpg": b"no image",
        "empty.jpg": b"",
        "large.png": sideways,
        "heavy.png": whole + b"\0" * 2000,
    }.items():
        (photos / name).write_bytes(content)
    (photos / "folder.jpg").mkdir()
    limits = Limits(bytes=len(whole) + 1000, pixels=100_000, dct_scaling=True)
    names = ["good.png", "cut.png", "text.jpg", "empty.jpg", "large.png", "heavy.png"]
    outcomes = detected(photos, artifact, [*names, "gone.png", "folder.jpg"], limits)
    assert codes(outcomes) == [
        None,
        "undecodable_image",
        "unsupported_image",
        "undecodable_image",
        "too_many_pixels",
        "body_too_large",
        "unreadable_file",
        "unreadable_file",
    ]


def test_an_image_that_takes_more_memory_than_there_is_ends_no_worker(
    photos: Path, artifact: Path
) -> None:
    side = (
        3000  # 9 million pixels, 58 MB; with so little memory decoding has the least of it, 32 MiB
    )
    (photos / "large.png").write_bytes(encode(np.zeros((side, side, 3), np.uint8)))
    (photos / "small.png").write_bytes(one_cell())
    engine = Engine.open([load_artifact(artifact)], device="cpu", cpus=1)
    limits = Limits(bytes=1_000_000, pixels=side * side, dct_scaling=True)
    with Detecting(
        engine, LocalFolder(photos), DetectParameters(), limits, cpus=1, memory_bytes=2**20
    ) as detecting:
        outcomes = detecting.detect([b"large.png", b"small.png"])
    assert codes(outcomes) == ["too_much_memory", None]


def test_a_worker_has_its_part_of_a_nodes_memory() -> None:
    assert share_of({"CPU": 8.0}, 2, 0) == 0.25
    assert share_of({"CPU": 16.0, "GPU": 2.0}, 1, 0.5) == 0.25
    assert share_of({"CPU": 4.0}, 0, 0) == 0.25
    assert share_of({}, 3, 0) == 1.0


def test_an_image_on_which_the_model_fails_takes_no_other_along(
    photos: Path, artifact: Path
) -> None:
    poisoned = paint((64, 64), {(0, 1): RED})
    poisoned[0, 0] = POISON
    (photos / "bad.png").write_bytes(encode(poisoned))
    names = ["bad.png"]
    for i in range(7):
        (photos / f"{i}.png").write_bytes(one_cell())
        names.append(f"{i}.png")
    assert codes(detected(photos, artifact, names)) == ["inference_failed"] + [None] * 7


def test_a_box_that_is_no_number_is_a_failed_image(photos: Path, artifact: Path) -> None:
    (photos / "a.png").write_bytes(one_cell())
    loaded = load_artifact(artifact)
    session = NotANumber(loaded, Settings.model_validate({}))
    engine = Engine(loaded, "a test's", session)
    with Detecting(engine, LocalFolder(photos), DetectParameters(), LIMITS, cpus=1) as detecting:
        assert codes(detecting.detect([b"a.png"])) == ["inference_failed"]


def test_a_lost_engine_is_no_property_of_the_images(photos: Path, artifact: Path) -> None:
    (photos / "a.png").write_bytes(one_cell())
    loaded = load_artifact(artifact)
    engine = Engine(loaded, "a test's", LosingSession(loaded, Settings.model_validate({})))
    with (
        Detecting(engine, LocalFolder(photos), DetectParameters(), LIMITS, cpus=1) as detecting,
        pytest.raises(EngineLost, match="illegal memory access"),
    ):
        detecting.detect([b"a.png"] * 20)


def test_a_folder_that_is_gone_is_no_property_of_the_images(photos: Path, artifact: Path) -> None:
    photos.rmdir()
    with pytest.raises(FileNotFoundError):
        detected(photos, artifact, ["a.png", "b.png"])


def test_rows_tell_what_was_found_and_what_was_wrong() -> None:
    boxes = np.array([[1, 2, 3, 4], [5, 6, 7.5, 8]], np.float32)
    two = Detections(boxes, np.array([0.75, 0.5], np.float32), np.array([2, 0]))
    none = Detections(boxes[:0], two.scores[:0], two.class_ids[:0])
    content = to_parquet(
        [b"a.jpg", b"\xe9.jpg", b"c.jpg"],
        [
            ImageDetections(two, 640, 480, True),
            ImageError("undecodable_image", "cut off"),
            ImageDetections(none, 10, 20, False),
        ],
        CLASS_NAMES,
        {"yolov8_fla": json.dumps({"model": "m"})},
    )
    table = parquet.read_table(BytesIO(content))
    assert json.loads(table.schema.metadata[b"yolov8_fla"]) == {"model": "m"}
    first = {"class_id": 2, "class_name": "Platelets", "score": 0.75}
    second = {"class_id": 0, "class_name": "RBC", "score": 0.5}
    nothing = dict.fromkeys(["width", "height", "detections", "truncated"])
    fine = {"error_code": None, "error_detail": None}
    assert table.to_pylist() == [
        {
            "path": "a.jpg",
            "width": 640,
            "height": 480,
            "detections": [
                first | {"x1": 1, "y1": 2, "x2": 3, "y2": 4},
                second | {"x1": 5, "y1": 6, "x2": 7.5, "y2": 8},
            ],
            "truncated": True,
            **fine,
        },
        {
            "path": "\\xe9.jpg",
            **nothing,
            "error_code": "undecodable_image",
            "error_detail": "cut off",
        },
        {
            "path": "c.jpg",
            "width": 10,
            "height": 20,
            "detections": [],
            "truncated": False,
            **fine,
        },
    ]


def test_parts_without_any_detection_or_image_have_the_same_columns(tmp_path: Path) -> None:
    error = ImageError("unreadable_file", "gone")
    for i, outcomes in enumerate(([error], [error, error])):
        paths = [f"{i}{j}.jpg".encode() for j in range(len(outcomes))]
        (tmp_path / f"part-{i}.parquet").write_bytes(to_parquet(paths, outcomes, CLASS_NAMES, {}))
    rows, errors = counted(ds.dataset(str(tmp_path), format="parquet"))
    assert (rows, errors) == (3, {"unreadable_file": 3})


def test_a_worker_tells_what_its_node_lacks(photos: Path, tmp_path: Path) -> None:
    artifact = tiny_artifact(tmp_path / "mine.onnx")
    (photos / "a.png").write_bytes(one_cell())
    out = tmp_path / "out.parquet"
    request = Request(
        source=str(photos),
        all_files=False,
        model=str(artifact),
        model_name="tiny",
        model_version=load_artifact(artifact).version,
        precision="fp32",
        parameters=DetectParameters(),
        max_image_bytes=LIMITS.bytes,
        max_image_pixels=LIMITS.pixels,
        jpeg_dct_scaling=True,
    )
    job = FolderJob.begin(request, str(out), images_per_part=None, left_out=None)

    def told(job: FolderJob) -> dict[str, Any]:
        actor = PartActor(
            job, device="cpu", max_batch_size=None, cpus=1, memory=lambda _cpus, _gpus: 2**30
        )
        return {name: value[0] for name, value in actor({"part": np.array([0])}).items()}

    def lacking(**changes: Any) -> str:
        return str(told(replace(job, request=replace(request, **changes)))["fault"])

    assert told(job) == {"part": 0, "images": 1, "failed": 0, "fault": ""}
    assert job.missing() == []
    assert "/nowhere is not there; every node needs" in lacking(source="/nowhere")
    assert "/nowhere.onnx: cannot be read" in lacking(model="/nowhere.onnx")
    other = replace(job, out=str(tmp_path / "other"))
    assert "other is empty; every node needs" in told(other)["fault"]
    (out / "_job" / "images").unlink()
    assert "FileNotFoundError" in told(job)["fault"]
    tiny_artifact(artifact, name="changed")
    assert "every node needs the same file" in told(job)["fault"]


def test_progress_tells_counts_pace_and_what_is_left() -> None:
    stream = StringIO()
    progress = Progress(1000, 500, every_s=0, stream=stream)
    progress.part_done(PartDone(100, 0))
    progress.part_done(PartDone(100, 3))
    first, second = stream.getvalue().splitlines()
    assert first == "600 of 1,000 images (60%)"
    assert second.startswith("700 of 1,000 images (70%), ")
    assert second.endswith(" left, 3 without detections")


def test_durations_are_in_words() -> None:
    assert [duration(each) for each in (42, 400, 12600)] == ["42 s", "7 min", "3.5 h"]
