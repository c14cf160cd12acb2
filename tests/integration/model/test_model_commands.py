"""From somebody's COCO file to images with boxes, by the commands of `python -m model`."""

import json
import os
import shutil
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from ultralytics import YOLO

from model.__main__ import main
from samples.render import CLASS_NAMES, render_smear, write_jpeg

pytestmark = pytest.mark.slow
DEFAULT = Path(__file__).resolve().parents[3] / "weights" / "yolov8n-fla-bccd.pt"
SIZE_HW = (180, 240)


@pytest.fixture(scope="module")
def smears(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images and their truth as COCO."""
    folder = tmp_path_factory.mktemp("smears")
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for seed in range(6):
        image, truth = render_smear(seed, SIZE_HW)
        name = f"Ausstrich grün {seed}.jpg"
        write_jpeg(folder / "smear.jpg", image)
        (folder / "smear.jpg").rename(folder / name)
        images.append({"id": seed, "file_name": name, "width": SIZE_HW[1], "height": SIZE_HW[0]})
        for class_id, (x1, y1, x2, y2) in truth:
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "category_id": class_id + 1}
            annotations.append(box | {"id": len(annotations), "image_id": seed})
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASS_NAMES, 1)]
    table = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "coco.json").write_text(json.dumps(table))
    return folder


@pytest.fixture(scope="module")
def data(smears: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("converted") / "set"
    command = ["convert", f"{smears}/coco.json", "--images", str(smears), "--output", str(output)]
    assert main([*command, "--val-fraction", "0.5"]) == 0
    return output / "data.yaml"


def test_val_gives_the_figures_of_ultralytics(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["val", str(DEFAULT), "--data", str(data), "--imgsz", "256", "--device", "cpu"]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()[-4:]
    shown = {line.split()[0]: [float(cell) for cell in line.split()[1:]] for line in lines}

    absolute = yaml.safe_load(data.read_text()) | {"path": str(data.parent)}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(absolute))
    reference = YOLO(DEFAULT).val(
        **{"data": str(tmp_path / "data.yaml"), "imgsz": 256, "rect": True, "device": "cpu"},
        **{"plots": False, "project": str(tmp_path), "name": "val", "batch": 16},
    )
    assert shown["all"][0] == 3
    np.testing.assert_allclose(shown["all"][2:], reference.mean_results(), atol=6e-5)
    assert shown["all"][4] > 0.5
    assert shown.keys() == {"all", *CLASS_NAMES}
    for i, class_id in enumerate(reference.ap_class_index):
        found = shown[CLASS_NAMES[class_id]]
        assert found[1] == reference.nt_per_class[class_id]
        np.testing.assert_allclose(found[2:], reference.class_result(i), atol=6e-5)


def test_predict_finds_what_ultralytics_finds_and_draws_it(
    smears: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    (other / "Ausstrich grün 0.jpg").write_bytes((smears / "Ausstrich grün 1.jpg").read_bytes())
    command = ["predict", str(DEFAULT), str(smears), str(other), "--output", "out/boxes"]
    assert main([*command, "--imgsz", "256", "--save-txt", "--save-json", "--device", "cpu"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "out/boxes"
    records = json.loads((tmp_path / "out" / "boxes" / "detections.json").read_text())
    assert len(records) == 7
    assert len(list((tmp_path / "out" / "boxes").glob("*.txt"))) == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]  # nothing elsewhere

    total = 0
    model = YOLO(DEFAULT)
    for record, folder in zip(records, [smears] * 6 + [other], strict=True):
        path = folder / record["filename"]
        pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
        reference = model.predict(pixels, imgsz=256, device="cpu", verbose=False)[0]
        found = record["detections"]
        boxes = [list(detection["box"].values()) for detection in found]
        np.testing.assert_allclose(boxes, reference.boxes.xyxy.numpy(), atol=0.01)
        scores = [detection["score"] for detection in found]
        np.testing.assert_allclose(scores, reference.boxes.conf.numpy(), atol=1e-5)
        assert [detection["class_id"] for detection in found] == reference.boxes.cls.tolist()
        total += len(found)
    assert total > 30
    counts = [int(part.split()[0]) for part in said[-2].partition(": ")[2].split(", ")]
    assert sum(counts) == total

    drawn = tmp_path / "out" / "boxes" / "Ausstrich grün 0.jpg"
    pixels = cv2.imdecode(np.fromfile(drawn, np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None
    assert pixels.shape[:2] == SIZE_HW
    rows = [line.split() for line in drawn.with_suffix(".txt").read_text().splitlines()]
    first, box = rows[0], records[0]["detections"][0]["box"]
    centre_x = (box["x1"] + box["x2"]) / 2 / SIZE_HW[1]
    assert float(first[1]) == pytest.approx(centre_x, abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["val", "no.pt", "--data", "{data}"], "no.pt: No such file"),
        (["val", "{data}", "--data", "{data}"], "not a complete checkpoint"),
        (["val", "{default}", "--data", "{data}", "--imgsz", "100"], "--imgsz 100 is not a multi"),
        (["val", "{default}", "--data", "{data}", "--imgsz", "0"], "--imgsz 0 is not a multiple"),
        (["val", "{default}", "--data", "{data}", "--batch", "0"], "--batch 0 is below 1"),
        (["val", "{default}", "--data", "{data}", "--split", "test"], "data.yaml: has no test"),
        (["val", "{default}", "--data", "{other}"], "the classes differ: other.yaml has cat; "),
        (["val", "{default}", "--data", "no.yaml"], "no.yaml: there is no such file"),
        (["predict", "no.pt", "{default}"], "no.pt: No such file"),
        (["predict", "{default}", "no.jpg"], "no.jpg: there is no such file or folder"),
        (["predict", "{default}", "{folder}"], "no images in"),
        (["predict", "{default}", "{data}"], "1 of 1 images can't be read"),
        (["predict", "{default}", "{data}", "--conf", "1.5"], "--conf 1.5 is not between 0 and 1"),
        (["predict", "{default}", "{data}", "--imgsz", "33"], "--imgsz 33 is not a multiple of"),
        (["predict", "{default}", "{data}", "--imgsz", "0"], "--imgsz 0 is not a multiple of"),
        (["predict", "{default}", "{data}", "--output", "{set}"], "set is not empty: --force"),
    ],
)
def test_what_the_user_can_mend_is_one_line(
    arguments: list[str],
    words: str,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "other.yaml"
    other.write_text(
        yaml.safe_dump(
            {"path": str(data.parent), "train": "images/train"}
            | {"val": "images/val", "names": ["cat"]}
        )
    )
    (tmp_path / "folder").mkdir()
    files = {"data": data, "set": data.parent, "other": other, "folder": tmp_path / "folder"}
    files |= {"default": DEFAULT}
    assert main([argument.format(**files) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_images_are_not_written_over_and_one_that_is_too_large_is_named(
    smears: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(smears, photos)
    before = {path: path.read_bytes() for path in photos.iterdir()}
    command = ["predict", str(DEFAULT), str(photos), "--imgsz", "64", "--device", "cpu"]
    assert main([*command, "--output", str(photos), "--force"]) == 2
    assert "would be written over: choose another --output" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in photos.iterdir()} == before

    large = bytearray(cv2.imencode(".png", np.zeros((1, 1, 3), np.uint8))[1].tobytes())
    large[16:24] = (60_000).to_bytes(4) * 2  # width and height in its header
    large[29:33] = zlib.crc32(large[12:29]).to_bytes(4)
    (photos / "large.png").write_bytes(large)
    assert main([*command, "--output", f"{tmp_path}/out"]) == 2
    assert "1 of 7 images can't be read: " in capsys.readouterr().err
    assert len(list((tmp_path / "out").glob("*.jpg"))) == 6


def test_a_checkpoint_that_only_export_knows_is_sent_there(
    smears: Path, shared_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tutorial = shared_dir / "checkpoints" / "tutorial_c2f_fla_neck.pt"
    assert main(["predict", str(tutorial), str(smears), "--output", f"{tmp_path}/out"]) == 2
    error = capsys.readouterr().err
    assert "has layers C2f_FLA, which this command does not know; `python -m export` may" in error
    assert not (tmp_path / "out").exists()


def test_ctrl_c_is_one_line_and_no_traceback(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    os.mkfifo(recipe)
    command = [sys.executable, "-m", "model", "train", "--data", "a.yaml", "--recipe", str(recipe)]
    with (
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process,
        recipe.open("w"),  # waits until the command reads
    ):
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error == "python -m model train: interrupted\n"
