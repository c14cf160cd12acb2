import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from pycocotools.coco import COCO
from ultralytics.data.utils import verify_image_label
from yolov8_fla_client.images import failed
from yolov8_fla_client.results import (
    AnnotatedImage,
    Box,
    Detection,
    ImageResult,
    ModelDescription,
    ModelName,
)
from yolov8_fla_client.writers.annotated import AnnotatedImages, output_name
from yolov8_fla_client.writers.coco import Coco
from yolov8_fla_client.writers.files import NameTaken, OutputRefused, write_whole
from yolov8_fla_client.writers.jsonl import JsonLines, row_of
from yolov8_fla_client.writers.yolo import YoloLabels

NAMES = ["RBC", 'a "quoted" name', "血小板 😀\u2028\x7f"]
MODEL = ModelDescription("v1", {"name": "m", "class_names": NAMES})
OTHER_MODEL = ModelDescription("v2", MODEL.metadata)


def result(name: str, *boxes: tuple[float, float, float, float]) -> ImageResult:
    found = tuple(
        Detection(i % 3, NAMES[i % 3], 0.9 - i / 10, Box(*box)) for i, box in enumerate(boxes)
    )
    return ImageResult(name, 64, 48, False, None, found, ModelName("m", "v1"))


A = result("a.jpg", (1, 2, 11.5, 22.25), (0, 0, 64, 48))
B = result("z/a.jpg", (60, 40, 64, 48))
NOTHING = result("empty.jpg")
BROKEN = failed("broken.jpg", "undecodable_image", "cut off")
ALL = (A, B, NOTHING, BROKEN)


def lines_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def as_json(value: object) -> object:
    return json.loads(json.dumps(value))


def test_json_lines_hold_each_result_with_what_was_chosen(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    writer = JsonLines(out, {"conf": 0.5}, MODEL)
    for each in ALL:
        writer.write(each)
        assert lines_of(tmp_path / "out.jsonl.partial")[-1] == as_json(row_of(each, {"conf": 0.5}))
    assert not out.exists()
    writer.finish()
    assert [each.name for each in tmp_path.iterdir()] == ["out.jsonl"]
    rows = lines_of(out)
    assert [row["filename"] for row in rows] == [each.filename for each in ALL]
    assert rows[0]["detections"][0] == {  # type: ignore[index]
        "class_id": 0,
        "class_name": "RBC",
        "score": 0.9,
        "box": {"x1": 1, "y1": 2, "x2": 11.5, "y2": 22.25},
    }
    assert rows[3]["error"] == {"code": "undecodable_image", "detail": "cut off"}


@pytest.mark.parametrize("ended", ["stopped", "killed", "finished"])
def test_json_lines_go_on_where_they_ended(tmp_path: Path, ended: str) -> None:
    out, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    first = JsonLines(out, {}, MODEL)
    for each in (A, BROKEN, B):
        first.write(each)
    if ended == "finished":
        first.finish()
    else:
        first.stop()
    if ended == "killed":
        partial.write_text(partial.read_text() + '{"filename": "em')
    second = JsonLines(out, {}, MODEL, resume=True)
    assert second.done == {"a.jpg", "z/a.jpg"}, "what failed is tried again"
    second.write(NOTHING)
    second.finish()
    assert [row["filename"] for row in lines_of(out)] == ["a.jpg", "z/a.jpg", "empty.jpg"]
    assert [each.name for each in tmp_path.iterdir()] == ["out.jsonl"]


def test_json_lines_can_go_on_from_nothing(tmp_path: Path) -> None:
    writer = JsonLines(tmp_path / "out.jsonl", {}, MODEL, resume=True)
    assert writer.done == set()
    writer.finish()
    assert (tmp_path / "out.jsonl").read_text() == ""


@pytest.mark.parametrize(
    ("parameters", "model", "told"),
    [({"conf": 0.1}, MODEL, "detected with"), ({}, OTHER_MODEL, "model version v1")],
)
def test_lines_of_another_model_or_choice_are_not_gone_on_with(
    tmp_path: Path, parameters: dict[str, object], model: ModelDescription, told: str
) -> None:
    out = tmp_path / "out.jsonl"
    writer = JsonLines(out, {}, MODEL)
    writer.write(A)
    writer.finish()
    before = out.read_text()
    with pytest.raises(OutputRefused, match=told):
        JsonLines(out, parameters, model, resume=True)
    assert out.read_text() == before
    assert [each.name for each in tmp_path.iterdir()] == ["out.jsonl"]


@pytest.mark.parametrize(
    "content",
    [
        b"text\n",
        b"{}\n",
        b"[]\n",
        b"\xff\n",
        b'{"filename": [], "error": null, "model": null, "parameters": {}}\n',
    ],
)
def test_a_file_of_something_else_is_not_gone_on_with(tmp_path: Path, content: bytes) -> None:
    out = tmp_path / "out.jsonl"
    out.write_bytes(content)
    with pytest.raises(OutputRefused, match=r"no file of|not of such a run"):
        JsonLines(out, {}, MODEL, resume=True)
    assert out.read_bytes() == content


def test_nothing_is_written_over_without_being_told_to(tmp_path: Path) -> None:
    file, folder = tmp_path / "out", tmp_path / "folder"
    file.write_text("mine")
    write_whole(folder / "mine.txt", b"mine")
    for make in (
        lambda: JsonLines(file, {}, MODEL),
        lambda: Coco(file, MODEL),
        lambda: YoloLabels(folder, MODEL, with_scores=False),
        lambda: AnnotatedImages(folder),
    ):
        with pytest.raises(OutputRefused, match="--force"):
            make()
    assert file.read_text() == "mine"
    assert [each.name for each in folder.iterdir()] == ["mine.txt"]
    for wrong in (
        lambda: Coco(folder, MODEL, force=True),
        lambda: Coco(tmp_path / "missing" / "out", MODEL),
        lambda: YoloLabels(file, MODEL, with_scores=False, force=True),
    ):
        with pytest.raises(OutputRefused, match=r"folder|file"):
            wrong()
    forced = Coco(file, MODEL, force=True)
    assert file.read_text() == "mine", "nothing is lost before the new is there"
    forced.finish()
    assert json.loads(file.read_text())["images"] == []


@pytest.mark.parametrize(
    "make",
    [
        lambda path: JsonLines(path, {}, MODEL, force=True),
        lambda path: Coco(path, MODEL, force=True),
    ],
)
def test_what_is_no_file_is_not_replaced_by_one(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OutputRefused, match="no regular file"):
        make(pipe)
    assert pipe.is_fifo()


def test_a_folder_where_no_file_can_be_made_is_told_at_the_beginning() -> None:
    with pytest.raises(OSError, match="proc"):
        Coco(Path("/proc/out.json"), MODEL)


def test_a_document_that_can_not_be_written_whole_leaves_nothing(tmp_path: Path) -> None:
    writer = Coco(tmp_path / "out.json", MODEL)
    writer.write(A)
    (tmp_path / "out.json.partial").mkdir()  # the document can't have its name
    with pytest.raises(OSError, match=r"out\.json\.partial"):
        writer.finish()
    assert [each.name for each in tmp_path.iterdir()] == ["out.json.partial"]


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    out = tmp_path / "out.json"
    writer = Coco(out, MODEL)
    for each in ALL:
        writer.write(each)
    writer.finish()
    assert [each.name for each in tmp_path.iterdir()] == ["out.json"]
    return out


def test_a_coco_document_is_read_by_pycocotools(coco: Path) -> None:
    truth = COCO(str(coco))
    images = truth.loadImgs(truth.getImgIds())
    assert [(each["file_name"], each["width"], each["height"]) for each in images] == [
        ("a.jpg", 64, 48),
        ("z/a.jpg", 64, 48),
        ("empty.jpg", 64, 48),
    ]
    assert [each["name"] for each in truth.loadCats(truth.getCatIds())] == NAMES
    (first, second) = truth.loadAnns(truth.getAnnIds(imgIds=[1]))
    assert first["bbox"] == [1, 2, 10.5, 20.25]
    assert first["area"] == pytest.approx(10.5 * 20.25, abs=0.01)
    assert (first["category_id"], second["category_id"]) == (1, 2)
    assert (first["score"], first["iscrowd"]) == (0.9, 0)
    ids = truth.getAnnIds()
    assert ids == [1, 2, 3]


def test_a_documents_annotations_are_results_to_pycocotools(coco: Path) -> None:
    truth = COCO(str(coco))
    found = truth.loadRes(json.loads(coco.read_text())["annotations"])
    assert len(found.getAnnIds()) == 3


def test_a_coco_run_that_ends_early_leaves_a_document_that_says_so(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    writer = Coco(out, MODEL)
    writer.write(A)
    writer.stop()
    assert [each.name for each in tmp_path.iterdir()] == ["out.json.partial"]
    assert len(json.loads((tmp_path / "out.json.partial").read_text())["annotations"]) == 2
    with pytest.raises(OutputRefused, match="ended early"):
        Coco(out, MODEL)
    Coco(out, MODEL, force=True).finish()
    assert [each.name for each in tmp_path.iterdir()] == ["out.json"]


def test_labels_are_read_by_ultralytics_as_they_were_written(tmp_path: Path) -> None:
    writer = YoloLabels(tmp_path, MODEL, with_scores=False)
    for each in ALL:
        writer.write(each)
    writer.finish()
    labels = {str(each.relative_to(tmp_path)) for each in tmp_path.rglob("*.txt")}
    assert labels == {
        "classes.txt",
        "labels/a.txt",
        "labels/z/a.txt",
        "labels/empty.txt",
    }
    for each in (A, B, NOTHING):
        image = tmp_path / "images" / (each.filename or "")
        image.parent.mkdir(exist_ok=True, parents=True)
        assert cv2.imwrite(str(image), np.zeros((48, 64, 3), np.uint8))
        label = tmp_path / "labels" / Path(each.filename or "").with_suffix(".txt")
        read = verify_image_label((str(image), str(label), "", False, 3, 0, 0, False))
        assert read[1] is not None, read[-1]
        rows = np.asarray(read[1], np.float64).reshape(-1, 5)
        centres, sizes = rows[:, 1:3] * (64, 48), rows[:, 3:] * (64, 48)
        xyxy = np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=1)
        assert np.abs(xyxy - each.boxes).max(initial=0) < 1e-3
        assert rows[:, 0].tolist() == each.class_ids.tolist()


def test_the_folder_of_labels_names_its_classes(tmp_path: Path) -> None:
    YoloLabels(tmp_path, MODEL, with_scores=False)
    assert (tmp_path / "classes.txt").read_text().split("\n") == [*NAMES, ""]
    described = yaml.safe_load((tmp_path / "data.yaml").read_text())
    assert described["names"] == dict(enumerate(NAMES))
    assert (described["path"], described["train"]) == (str(tmp_path), "images")


def test_labels_can_have_scores(tmp_path: Path) -> None:
    writer = YoloLabels(tmp_path, MODEL, with_scores=True)
    writer.write(B)
    assert (tmp_path / "labels/z/a.txt").read_text().split()[-1] == "0.900000"


def test_images_whose_labels_would_be_one_file_are_told(tmp_path: Path) -> None:
    writer = YoloLabels(tmp_path, MODEL, with_scores=False)
    writer.write(result("a.jpg", (1, 2, 3, 4)))
    with pytest.raises(NameTaken, match=r"labels/a.txt, which is of a.jpg"):
        writer.write(result("a.png"))
    assert (tmp_path / "labels/a.txt").read_text()


def test_a_dot_in_a_name_is_no_suffix_to_lose(tmp_path: Path) -> None:
    writer = YoloLabels(tmp_path, MODEL, with_scores=False)
    writer.write(result("frame.001.jpg"))
    writer.write(result("frame.002.jpg"))
    assert sorted(each.name for each in (tmp_path / "labels").iterdir()) == [
        "frame.001.txt",
        "frame.002.txt",
    ]


def test_annotated_images_keep_their_names_where_the_format_is_the_same(tmp_path: Path) -> None:
    writer = AnnotatedImages(tmp_path)
    writer.write(AnnotatedImage("z/a.jpg", b"\xff\xd8", "image/jpeg"))
    writer.write(AnnotatedImage("a.webp", b"\xff\xd8", "image/jpeg"))
    assert (tmp_path / "z/a.jpg").read_bytes() == b"\xff\xd8"
    assert (tmp_path / "a.webp.jpg").exists()
    with pytest.raises(NameTaken):
        writer.write(AnnotatedImage("a.webp.jpg", b"", "image/jpeg"))
    assert output_name("A.JPEG", "image/jpeg") == "A.JPEG"
    assert output_name("a.jpg", "image/png") == "a.jpg.png"


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with suppress(OSError):
        write_whole(tmp_path / "taken", b"abc")
    assert [each.name for each in tmp_path.iterdir()] == ["taken"]
