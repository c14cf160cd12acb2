"""Conversion of data sets into YOLO form, checked with readers that are not ours."""

import csv
import json
import os
import random
import subprocess
import sys
import unicodedata
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps
from pycocotools.coco import COCO
from ultralytics.data.utils import check_det_dataset, verify_image_label

from model.__main__ import main
from model.convert.convert import convert

SIZE_WH = (120, 80)
Truth = dict[str, list[tuple[str, tuple[float, float, float, float]]]]  # file: (class, xyxy)

# As in the original BCCD: one XML an image, and the same boxes in one CSV with its own header.
TRUTH: Truth = {
    "BloodImage_00000.jpg": [("WBC", (26, 17, 90, 70)), ("RBC", (7, 33, 40, 61))],
    "BloodImage_00001.jpg": [("RBC", (0, 0, 30, 30)), ("Platelets", (100, 60, 120, 80))],
    "BloodImage_00002.jpg": [("RBC", (50, 40, 81, 79))],
    "BloodImage_00003.jpg": [("RBC", (1, 1, 119, 79))],
    "Blütbild grün.jpg": [("RBC", (10, 10, 20, 25))],
}


def image(path: Path, size_wh: tuple[int, int] = SIZE_WH, orientation: int = 1) -> None:
    """An image that is not the same turned or mirrored, nor as one in another place."""
    width, height = size_wh
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels += np.frombuffer(zlib.crc32(bytes(path)).to_bytes(4), np.uint8)[:3] % 100
    pixels[: height // 2, : width // 5] = 255  # no square: turned, it would look the same
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, exif=exif)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for name in TRUTH:
        image(folder / name)
    return folder


def coco_of(truth: Truth, **changes: Any) -> dict[str, Any]:
    """A COCO file with gaps between its category ids."""
    ids = {"WBC": 3, "Platelets": 90, "RBC": 12}
    images: list[dict[str, Any]] = [
        {"id": 7 * i + 1, "file_name": name, "width": SIZE_WH[0], "height": SIZE_WH[1]}
        for i, name in enumerate(truth)
    ]
    annotations: list[dict[str, Any]] = [
        {"image_id": image["id"], "category_id": ids[c], "bbox": [x1, y1, x2 - x1, y2 - y1]}
        | {"area": 1, "iscrowd": 0}
        for image in images
        for c, (x1, y1, x2, y2) in truth[str(image["file_name"])]
    ]
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    numbered = [{"id": number} | record for number, record in enumerate(annotations, 1)]
    made = {"images": images, "annotations": numbered, "categories": categories}
    return made | changes


def write_voc(folder: Path, truth: Truth) -> None:
    """VOC counts pixels from 1, and both ends belong to the box."""
    folder.mkdir(parents=True)
    for name, boxes in truth.items():
        root = ET.Element("annotation", verified="yes")
        ET.SubElement(root, "filename").text = name
        size = ET.SubElement(root, "size")
        for key, value in zip(("width", "height", "depth"), (*SIZE_WH, 3), strict=True):
            ET.SubElement(size, key).text = str(value)
        for class_name, (x1, y1, x2, y2) in boxes:
            thing = ET.SubElement(root, "object")
            ET.SubElement(thing, "name").text = class_name
            ET.SubElement(thing, "difficult").text = "0"
            box = ET.SubElement(thing, "bndbox")
            for key, edge in (("xmin", x1 + 1), ("ymin", y1 + 1), ("xmax", x2), ("ymax", y2)):
                ET.SubElement(box, key).text = str(edge)
        ET.ElementTree(root).write(folder / f"{Path(name).stem}.xml", encoding="utf-8")


def write_csv(path: Path, rows: Iterable[Iterable[object]], delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


def read_back(output: Path, parts: Iterable[str] = ("train", "val")) -> Truth:
    """What ultralytics reads from a data set, in pixels, without the parts' folders."""
    table = check_det_dataset(str(output / "data.yaml"))
    found: Truth = {}
    for part in parts:
        for image in sorted(Path(table[part]).iterdir()):
            label = Path(str(image.parent).replace("images", "labels"), f"{image.stem}.txt")
            checked = verify_image_label(
                (str(image), str(label), "", False, len(table["names"]), 0, 0, False)
            )
            _, labels, (height, width), _, _, missing, _, _, corrupt, message = checked
            assert not corrupt, message
            assert not missing
            found[image.name] = []
            for class_id, x, y, w, h in labels.tolist():
                edges = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
                pixels = zip(edges, (width, height, width, height), strict=True)
                # Labels are read in float32; rounded, they sort as the truth does.
                x1, y1, x2, y2 = (round(edge * side, 3) for edge, side in pixels)
                found[image.name].append((table["names"][int(class_id)], (x1, y1, x2, y2)))
    return found


def assert_same(found: Truth, truth: Truth, tolerance: float = 1e-3) -> None:
    assert found.keys() == truth.keys()
    for name in truth:
        expected = sorted(truth[name])
        assert [c for c, _ in sorted(found[name])] == [c for c, _ in expected]
        boxes = np.array([box for _, box in sorted(found[name])]).reshape(-1, 4)
        wanted = np.array([box for _, box in expected], float).reshape(-1, 4)
        np.testing.assert_allclose(boxes, wanted, atol=tolerance)


def rows_of(truth: Truth, order: str) -> list[list[Any]]:
    """Rows of a table; `order` has a letter a column: f(ile), c(lass), w, h, x, y, X, Y."""
    rows = []
    for name, boxes in truth.items():
        for class_name, (x1, y1, x2, y2) in boxes:
            cells: dict[str, Any] = {"f": name, "c": class_name, "w": SIZE_WH[0], "h": SIZE_WH[1]}
            cells |= {"x": x1, "y": y1, "X": x2, "Y": y2}
            rows.append([cells[letter] for letter in order])
    return rows


def test_coco_boxes_are_those_that_pycocotools_reads(tmp_path: Path, images: Path) -> None:
    source, output = tmp_path / "a.json", tmp_path / "out"
    source.write_text(json.dumps(coco_of(TRUTH)))
    convert(source, images, output)
    coco = COCO(str(source))
    expected: Truth = {
        image["file_name"]: [
            (coco.cats[found["category_id"]]["name"], (x, y, x + w, y + h))
            for found in coco.loadAnns(coco.getAnnIds(image["id"]))
            for x, y, w, h in [found["bbox"]]
        ]
        for image in coco.imgs.values()
    }
    assert_same(read_back(output), expected)
    names = check_det_dataset(str(output / "data.yaml"))["names"]
    assert list(names.values()) == ["WBC", "RBC", "Platelets"]  # by category id, without gaps


def test_voc_pixels_count_from_1(tmp_path: Path, images: Path) -> None:
    write_voc(tmp_path / "Annotations", TRUTH)
    convert(tmp_path / "Annotations", images, tmp_path / "out")
    assert_same(read_back(tmp_path / "out"), TRUTH)


@pytest.mark.parametrize(
    ("header", "order", "delimiter"),
    [
        ("filename,width,height,class,xmin,ymin,xmax,ymax", "fwhcxyXY", ","),  # TensorFlow
        ("filename,cell_type,xmin,xmax,ymin,ymax", "fcxXyY", ","),  # BCCD's own
        ("", "fxyXYc", ","),  # RetinaNet
        ("ImageID;LabelName;XMin;XMax;YMin;YMax", "fcxXyY", ";"),
        ("image\tx1\ty1\tx2\ty2\tlabel", "fxyXYc", "\t"),
    ],
)
def test_csv_columns_are_found_by_their_names(
    header: str, order: str, delimiter: str, tmp_path: Path, images: Path
) -> None:
    head = [header.split(delimiter)] if header else []
    source = write_csv(tmp_path / "a.csv", [*head, *rows_of(TRUTH, order)], delimiter)
    convert(source, images, tmp_path / "out")
    assert_same(read_back(tmp_path / "out"), TRUTH)


def test_csv_fractions_of_open_images_and_names_without_ending(
    tmp_path: Path, images: Path
) -> None:
    width, height = SIZE_WH
    rows = [
        [Path(str(name)).stem, c, x1 / width, x2 / width, y1 / height, y2 / height]
        for name, c, x1, y1, x2, y2 in rows_of(TRUTH, "fcxyXY")
    ]
    head = ["ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax"]
    source = write_csv(tmp_path / "a.csv", [head, *rows])
    assert "boxes as fractions" in convert(source, images, tmp_path / "out")
    assert_same(read_back(tmp_path / "out"), TRUTH)


@pytest.mark.parametrize("seed", range(5))
def test_random_boxes_survive_the_round_trip(seed: int, tmp_path: Path, images: Path) -> None:
    rng = random.Random(seed)
    truth: Truth = {}
    for name in TRUTH:
        xs = [sorted(rng.sample(range(SIZE_WH[0] + 1), 2)) for _ in range(20)]
        ys = [sorted(rng.sample(range(SIZE_WH[1] + 1), 2)) for _ in range(20)]
        truth[name] = list(
            {
                (rng.choice(["RBC", "WBC", "Platelets"]), (x1, y1, x2, y2))
                for (x1, x2), (y1, y2) in zip(xs, ys, strict=True)
            }
        )
    (tmp_path / "a.json").write_text(json.dumps(coco_of(truth)))
    convert(tmp_path / "a.json", images, tmp_path / "coco")
    write_voc(tmp_path / "voc", truth)
    convert(tmp_path / "voc", images, tmp_path / "from_voc")
    assert_same(read_back(tmp_path / "coco"), truth)
    assert_same(read_back(tmp_path / "from_voc"), truth)


def test_what_is_left_out_is_counted(tmp_path: Path, images: Path) -> None:
    made = coco_of(TRUTH)
    first = made["annotations"][0]
    made["annotations"] += [
        first | {"iscrowd": 1},
        first | {"bbox": [10, 10, 0, 5]},
        first | {"bbox": [200, 10, 5, 5]},
        first | {"bbox": [100, 60, 40, 40]},
    ]
    made["images"] += [
        {"id": 500, "file_name": "gone.jpg", "width": 1, "height": 1},
        {"id": 501, "file_name": "torn.jpg", "width": 1, "height": 1},
        {"id": 502, "file_name": "empty.jpg"},
    ]
    (images / "torn.jpg").write_bytes((images / "BloodImage_00000.jpg").read_bytes()[:10])
    image(images / "empty.jpg")
    image(images / "stranger.jpg")
    source = tmp_path / "a.json"
    source.write_text(json.dumps(made))
    summary = convert(source, images, tmp_path / "out")
    for words in (
        "crowd boxes, left out: 1\n",
        "boxes without area, left out: 1 (",
        "boxes outside of their image, left out: 1 (",
        "boxes clipped to their image: 1 (",
        "images missing, left out: 1 (gone.jpg)\n",
        "images that can't be read, left out: 1 (torn.jpg)\n",
        "images of the folder that the annotations don't name, left out: 1\n",
    ):
        assert words in summary
    truth = TRUTH | {"empty.jpg": []}  # a background stays
    truth["BloodImage_00000.jpg"] = [*truth["BloodImage_00000.jpg"], ("WBC", (100, 60, 120, 80))]
    assert_same(read_back(tmp_path / "out"), truth)


def test_difficult_objects_are_kept_unless_asked(tmp_path: Path, images: Path) -> None:
    write_voc(tmp_path / "voc", TRUTH)
    file = tmp_path / "voc" / "BloodImage_00002.xml"
    file.write_text(file.read_text().replace("<difficult>0", "<difficult>1"))
    convert(tmp_path / "voc", images, tmp_path / "kept")
    assert_same(read_back(tmp_path / "kept"), TRUTH)
    summary = convert(tmp_path / "voc", images, tmp_path / "skipped", skip_difficult=True)
    assert "difficult objects, left out: 1" in summary
    assert_same(read_back(tmp_path / "skipped"), TRUTH | {"BloodImage_00002.jpg": []})


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "tif"])
@pytest.mark.parametrize("unit_wh", [(1, 1), SIZE_WH])  # pixels, and fractions of the size
def test_boxes_follow_a_image_that_exif_turns(
    orientation: int, ending: str, unit_wh: tuple[int, int], tmp_path: Path
) -> None:
    """The white corner is where the label says, in the image that training decodes."""
    width, height = SIZE_WH
    files = [tmp_path / "images" / f"{name}.{ending}" for name in "ab"]
    for file in files:
        image(file, orientation=orientation)
    stored = (0, 0, width / 5, height / 2)
    head = ["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"]
    if orientation < 5:
        # Nothing in the annotations tells stored from upright: they are taken as upright.
        upright = np.asarray(ImageOps.exif_transpose(Image.open(files[0])))[..., 0] > 127
        ys, xs = np.nonzero(upright)
        stored = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    box = [edge / side for edge, side in zip(stored, unit_wh * 2, strict=True)]
    rows = [[file.name, width, height, "white corner", *box] for file in files]
    source = write_csv(tmp_path / "a.csv", [head, *rows])
    convert(source, tmp_path / "images", tmp_path / "out")
    for name, [(class_name, found)] in read_back(tmp_path / "out").items():
        assert class_name == "white corner"
        file = next((tmp_path / "out" / "images").rglob(name))
        decoded = cv2.imdecode(np.fromfile(file, np.uint8), cv2.IMREAD_COLOR)
        assert decoded is not None
        ys, xs = np.nonzero(decoded[..., 0] > 127)
        edges = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        np.testing.assert_allclose(found, edges, atol=1e-3)


def test_sizes_come_from_the_images(tmp_path: Path, images: Path) -> None:
    made = coco_of(TRUTH)
    made["images"][0] |= {"width": 4000, "height": 3000}
    made["images"][1] |= {"width": 0, "height": 0}  # as some tools write for unknown
    (tmp_path / "a.json").write_text(json.dumps(made))
    summary = convert(tmp_path / "a.json", images, tmp_path / "out")
    assert "another size than annotated, theirs taken: 1 (BloodImage_00000.jpg is 120x80" in summary
    assert_same(read_back(tmp_path / "out"), TRUTH)


def test_files_of_one_name_in_two_folders_stay_two(tmp_path: Path) -> None:
    truth: Truth = {
        "left/a.jpg": [("RBC", (1, 2, 30, 40))],
        "right/a.jpg": [("WBC", (5, 6, 70, 70))],
        "right/A.png": [("WBC", (50, 6, 70, 70))],
    }
    for name in truth:
        image(tmp_path / "images" / name)
    (tmp_path / "a.json").write_text(json.dumps(coco_of(truth)))
    convert(tmp_path / "a.json", tmp_path / "images", tmp_path / "out")
    parts = [read_back(tmp_path / "out", [part]) for part in ("train", "val")]
    for part, count in zip(parts, (2, 1), strict=True):
        assert len({Path(name).stem.casefold() for name in part}) == count
    boxes = sorted(box for part in parts for boxes in part.values() for box in boxes)
    assert_same({"all": boxes}, {"all": [box for boxes in truth.values() for box in boxes]})

    bare: Truth = {"a.jpg": truth["left/a.jpg"]}
    (tmp_path / "a.json").write_text(json.dumps(coco_of(bare)))
    with pytest.raises(ValueError, match=r"several images below .* may be 'a.jpg'"):
        convert(tmp_path / "a.json", tmp_path / "images", tmp_path / "other")


def test_a_image_does_not_take_the_boxes_of_one_in_another_folder(tmp_path: Path) -> None:
    for name in ("left/a.jpg", "left/b.jpg"):
        image(tmp_path / "images" / name)
    box: Any = [("RBC", (1, 2, 30, 40))]
    (tmp_path / "a.json").write_text(json.dumps(coco_of({"left/b.jpg": box, "right/a.jpg": box})))
    summary = convert(tmp_path / "a.json", tmp_path / "images", tmp_path / "out")
    assert "images found in another folder, by their file name: 1 (right/a.jpg)" in summary

    truth: Truth = {"left/a.jpg": box, "left/b.jpg": box, "right/a.jpg": box}
    (tmp_path / "a.json").write_text(json.dumps(coco_of(truth)))
    with pytest.raises(ValueError, match=r"both left/a.jpg and right/a.jpg would be .*left/a.jpg"):
        convert(tmp_path / "a.json", tmp_path / "images", tmp_path / "other")


def test_the_split_follows_the_seed_and_has_each_image_once(tmp_path: Path, images: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(coco_of(TRUTH)))
    splits: list[set[str]] = []
    for seed in (1, 1, 2, 3):
        output = tmp_path / f"out_{len(splits)}"
        convert(tmp_path / "a.json", images, output, val_fraction=0.4, seed=seed)
        parts = [
            {p.name for p in (output / "images" / part).iterdir()} for part in ("train", "val")
        ]
        assert len(parts[1]) == 2
        assert parts[0] | parts[1] == TRUTH.keys()
        assert not parts[0] & parts[1]
        splits.append(parts[1])
    assert splits[0] == splits[1]
    assert len({frozenset(split) for split in splits}) > 1


def test_copies_of_a_image_are_not_in_both_parts(tmp_path: Path, images: Path) -> None:
    truth = dict(TRUTH)
    for name, boxes in TRUTH.items():
        (images / f"copy of {name}").write_bytes((images / name).read_bytes())
        truth[f"copy of {name}"] = boxes
    (tmp_path / "a.json").write_text(json.dumps(coco_of(truth)))
    for seed in range(5):
        convert(tmp_path / "a.json", images, tmp_path / f"{seed}", val_fraction=0.4, seed=seed)
        parts = [
            {file.read_bytes() for file in (tmp_path / f"{seed}" / "images" / part).iterdir()}
            for part in ("train", "val")
        ]
        assert [len(part) for part in parts] == [3, 2]
        assert not parts[0] & parts[1]


TRAIN: Truth = {name: TRUTH[name] for name in sorted(TRUTH)[:3]}
VAL: Truth = {name: TRUTH[name] for name in sorted(TRUTH)[3:]}


def write_source(path: Path, truth: Truth, form: str) -> Path:
    """Annotations of a form, at the path with its ending."""
    if form == "voc":
        write_voc(path, truth)
    elif form == "coco":
        path = path.with_suffix(".json")
        path.write_text(json.dumps(coco_of(truth)))
    else:
        path = write_csv(path.with_suffix(".csv"), rows_of(truth, "fxyXYc"))
    return path


@pytest.mark.parametrize("form", ["coco", "voc", "csv"])
@pytest.mark.parametrize("seed", range(3))
def test_a_split_that_is_given_is_kept(form: str, seed: int, tmp_path: Path, images: Path) -> None:
    train = write_source(tmp_path / "train", TRAIN, form)
    val = write_source(tmp_path / "val", VAL, form)
    image(images / "stranger.jpg")
    summary = convert(train, images, tmp_path / "out", val=val, seed=seed)
    assert_same(read_back(tmp_path / "out", ["train"]), TRAIN)
    assert_same(read_back(tmp_path / "out", ["val"]), VAL)
    # Those of the one part are no strangers to the other.
    assert "that the annotations don't name, left out: 1\n" in summary


@pytest.mark.parametrize("form", ["voc", "csv"])
def test_classes_of_both_parts_have_one_list(form: str, tmp_path: Path, images: Path) -> None:
    names = list(TRUTH)
    box = (1, 2, 30, 40)
    truth: list[Truth] = [
        {names[0]: [("a", box), ("c", box)]},
        {names[1]: [("b", box), ("c", box), ("d", box)], names[2]: [("b", box)]},
    ]
    train, val = (write_source(tmp_path / f"{i}", part, form) for i, part in enumerate(truth))
    summary = convert(train, images, tmp_path / "out", val=val)
    assert list(check_det_dataset(str(tmp_path / "out" / "data.yaml"))["names"].values()) == [
        *"abcd"
    ]
    assert_same(read_back(tmp_path / "out", ["train"]), truth[0])
    assert_same(read_back(tmp_path / "out", ["val"]), truth[1])
    assert "classes of val without a box in train: 2 (b, d)\n" in summary


def test_classes_of_two_coco_files_are_joined_by_name_and_not_by_id(
    tmp_path: Path, images: Path
) -> None:
    """Of the same id are RBC and, in val, WBC; val has one that train lacks, and not all."""
    made = coco_of(VAL)
    renumbered = {"RBC": 3, "WBC": 12, "Platelets": 1}
    old = {category["id"]: category["name"] for category in made["categories"]}
    for annotation in made["annotations"]:
        annotation["category_id"] = renumbered[old[annotation["category_id"]]]
    made["categories"] = [{"id": n, "name": name} for name, n in renumbered.items()]
    made["categories"].append({"id": 2, "name": "Blast"})
    (tmp_path / "val.json").write_text(json.dumps(made))
    train = write_source(tmp_path / "train", TRAIN, "coco")
    convert(train, images, tmp_path / "out", val=tmp_path / "val.json")
    assert_same(read_back(tmp_path / "out", ["train"]), TRAIN)
    assert_same(read_back(tmp_path / "out", ["val"]), VAL)
    names = check_det_dataset(str(tmp_path / "out" / "data.yaml"))["names"]
    assert list(names.values()) == ["WBC", "RBC", "Platelets", "Blast"]


@pytest.mark.parametrize("below", ["train", "."])  # side by side, and one in the other
def test_the_parts_may_have_folders_of_their_own_and_keep_their_names(
    below: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    parts: dict[str, Truth] = {
        "train": {"1.jpg": [("RBC", (1, 2, 30, 40))], "2.jpg": [("WBC", (5, 6, 70, 70))]},
        "val": {"1.jpg": [("WBC", (9, 9, 40, 40))], "3.jpg": []},
    }
    for part, truth in parts.items():
        for name in truth:
            image(Path("photos", part, name))
        named = (
            {f"{part}/{name}": boxes for name, boxes in truth.items()} if below == "." else truth
        )
        write_source(Path(part), named, "coco")
    # The same folder may be told in two ways.
    folders = ["--images", f"photos/{below}", "--val-images", f"{tmp_path}/photos/val"]
    assert main(["convert", "train.json", "--val", "val.json", *folders, "--output", "out"]) == 0
    assert "that the annotations don't name" not in capsys.readouterr().out
    assert_same(read_back(tmp_path / "out", ["train"]), parts["train"])
    assert_same(read_back(tmp_path / "out", ["val"]), parts["val"])


def test_a_image_of_both_parts_is_left_out_of_train_and_told(tmp_path: Path, images: Path) -> None:
    names = sorted(TRUTH)
    (images / "copy.jpg").write_bytes((images / names[3]).read_bytes())
    (images / "again.jpg").write_bytes((images / names[0]).read_bytes())
    # One under another name, one named by both, and a pair within train, which may stay.
    leaky = TRAIN | {"copy.jpg": TRUTH[names[3]], "again.jpg": TRUTH[names[0]]}
    leaky[names[4]] = TRUTH[names[4]]
    train = write_source(tmp_path / "train", leaky, "coco")
    val = write_source(tmp_path / "val", VAL, "coco")
    summary = convert(train, images, tmp_path / "out", val=val)
    told = f"images of train that are in val too, left out of train: 2 ({names[4]}, copy.jpg)\n"
    assert told in summary
    assert_same(read_back(tmp_path / "out", ["val"]), VAL)
    assert_same(read_back(tmp_path / "out", ["train"]), TRAIN | {"again.jpg": TRUTH[names[0]]})


def test_notes_say_of_which_part_they_are(tmp_path: Path, images: Path) -> None:
    train = write_source(tmp_path / "train", TRAIN | {"gone.jpg": []}, "coco")
    val = write_source(tmp_path / "val", VAL | {"lost.jpg": []}, "coco")
    summary = convert(train, images, tmp_path / "out", val=val)
    assert "train: images missing, left out: 1 (gone.jpg)\n" in summary
    assert "val: images missing, left out: 1 (lost.jpg)\n" in summary


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--val", "val.json", "--val-fraction", "0.2"], "--val-fraction draws a split and --val"),
        (["--val-images", "images"], "--val-images has the images of --val, which is not"),
        (["--val", "none.json"], "none.json: there is no such file or folder"),
        (["--val", "val.json", "--val-images", "none"], "none: there is no such folder"),
        (["--val", "train.json"], "train.json: no box is left to train on without the 3 images"),
        (["--val", "bare.json"], "bare.json: no image has a box in it"),
        (["--val", "val.csv"], "val.csv: not JSON"),
        (["--val", "images"], "images: is a folder; coco annotations are one file"),
    ],
)
def test_a_split_that_can_not_be_kept_is_one_line_and_nothing_is_written(
    options: list[str],
    words: str,
    tmp_path: Path,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_source(Path("train"), TRAIN, "coco")
    write_source(Path("val"), VAL, "coco")
    write_source(Path("val"), VAL, "csv")
    write_source(Path("bare"), {name: [] for name in VAL}, "coco")
    before = sorted(tmp_path.iterdir())
    command = ["convert", "train.json", "--images", images.name, "--output", "out"]
    assert main([*command, *options]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_an_output_that_holds_the_validation_source_is_not_replaced(
    tmp_path: Path, images: Path
) -> None:
    train = write_source(tmp_path / "train", TRAIN, "coco")
    val = write_source(tmp_path / "val", VAL, "coco")
    output = tmp_path / "out"
    convert(train, images, output, val=val)
    inside = output / "images" / "val"
    with pytest.raises(ValueError, match=r"out holds .*images/val, which is read"):
        convert(train, images, output, val=val, val_images=inside, force=True)
    assert_same(read_back(output), TRUTH)


def test_a_image_is_found_by_a_name_in_other_unicode(tmp_path: Path, images: Path) -> None:
    truth = {unicodedata.normalize("NFD", name): boxes for name, boxes in TRUTH.items()}
    assert truth.keys() != TRUTH.keys()
    (tmp_path / "a.json").write_text(json.dumps(coco_of(truth)))
    convert(tmp_path / "a.json", images, tmp_path / "out")
    assert_same(read_back(tmp_path / "out"), TRUTH)


def test_a_class_may_be_called_like_a_column(tmp_path: Path, images: Path) -> None:
    rows = "BloodImage_00000.jpg,1,2,30,40,left\nBloodImage_00001.jpg,1,2,30,40,right\n"
    (tmp_path / "a.csv").write_text(rows)
    convert(tmp_path / "a.csv", images, tmp_path / "out")
    names = [box[0] for boxes in read_back(tmp_path / "out").values() for box in boxes]
    assert sorted(names) == ["left", "right"]


def test_links_and_copies_hold_the_same_images(tmp_path: Path, images: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(coco_of(TRUTH)))
    convert(tmp_path / "a.json", images, tmp_path / "copied")
    convert(tmp_path / "a.json", images, tmp_path / "linked", link=True)
    for file in (tmp_path / "copied" / "images").rglob("*.jpg"):
        link = tmp_path / "linked" / file.relative_to(tmp_path / "copied")
        assert link.is_symlink()
        assert not file.is_symlink()
        assert link.read_bytes() == file.read_bytes()
    assert_same(read_back(tmp_path / "linked"), TRUTH)


BROKEN = {
    "no.json": ("{no.json}", "there is no such file or folder"),
    "cut.json": ('{"images": [', "cut.json: not JSON: Expecting"),
    "list.json": ("[1]", "a COCO file has images, annotations and categories"),
    "image.json": (coco_of(TRUTH, images=[{"id": 1}]), "image 1: has not both id and file_name"),
    "category.json": (
        coco_of(TRUTH, categories=[{"id": 3, "name": "WBC"}]),
        "annotation 2: there is no category 12",
    ),
    "bbox.json": (
        coco_of(TRUTH, annotations=[{"id": 5, "image_id": 1, "category_id": 3, "bbox": [1, 2]}]),
        "annotation 5: bbox is [1, 2], not [x, y, width, height]",
    ),
    "nan.json": (
        coco_of(
            TRUTH, annotations=[{"id": 5, "image_id": 1, "category_id": 3, "bbox": [1, 2, "a", 4]}]
        ),
        "annotation 5: a number is expected, not 'a'",
    ),
    "huge.json": (
        coco_of(
            TRUTH,
            annotations=[{"id": 5, "image_id": 1, "category_id": 3, "bbox": [10**400, 2, 3, 4]}],
        ),
        "annotation 5: a number is expected, not '1000",
    ),
    "twice.json": (
        coco_of(TRUTH, categories=[{"id": 3, "name": "WBC"}, {"id": 3, "name": "RBC"}]),
        "there are two categories of id 3",
    ),
    "nameless.json": (
        coco_of(TRUTH, categories=[{"id": 3, "name": None}]),
        "has not both id and name",
    ),
    "boxless.json": (coco_of(TRUTH, annotations=[]), "no image has a box in it"),
    "outside.json": (
        coco_of(
            TRUTH, annotations=[{"id": 5, "image_id": 1, "category_id": 3, "bbox": [500, 2, 3, 4]}]
        ),
        "no image has a box in it (boxes outside of their image, left out: 1",
    ),
    "up.json": (
        coco_of({"../secret.jpg": [("RBC", (1, 1, 2, 2))]}),
        "image 1: the file name '../secret.jpg' leads out of the folder",
    ),
    "windows.json": (
        coco_of({"..\\secret.jpg": [("RBC", (1, 1, 2, 2))]}),
        "leads out of the folder",
    ),
    "elsewhere.json": (
        coco_of({"other.jpg": [("RBC", (1, 1, 2, 2))]}),
        "holds none of the 1 images that the annotations name (other.jpg, ...)",
    ),
    "alone.json": (
        coco_of({"BloodImage_00000.jpg": [("RBC", (1, 1, 2, 2))]}),
        "one image alone can't be split",
    ),
    "empty.csv": ("", "empty.csv: the file is empty"),
    "header.csv": ("filename,xmin,ymin,xmax,ymax\n", "line 1: the header filename,xmin,ymin,xmax"),
    "strange.csv": ("a,b\n1,2\n", "strange.csv line 1: neither a header with"),
    "number.csv": ("a.jpg,1,2,3,x,RBC\n", "number.csv line 1: y2: a number is expected, not 'x'"),
    "short.csv": ("filename,class,x1,y1,x2,y2\na.jpg,RBC,1,2\n", "short.csv line 2: x2: a number"),
    "cut.xml": ("<annotation><object>", "cut.xml: not XML"),
    "encoding.xml": ('<?xml version="1.0" encoding="foo"?><annotation/>', "encoding.xml: not XML"),
    "other.xml": ("<html/>", "a VOC file is an <annotation>, not <html>"),
    "nobox.xml": (
        "<annotation><object><name>RBC</name></object></annotation>",
        "nobox.xml: object 1: has no bndbox",
    ),
    "what.bin": ("?", "its form is not clear"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_can_not_be_converted_is_one_line_and_nothing_is_written(
    name: str, tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, words = BROKEN[name]
    source = tmp_path / name
    if name != "no.json":
        source.write_text(content if isinstance(content, str) else json.dumps(content))
    image(tmp_path / "secret.jpg")
    before = sorted(tmp_path.iterdir())
    command = ["convert", str(source), "--images", str(images), "--output", f"{tmp_path}/out"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_an_output_that_exists_is_kept_unless_forced(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.json").write_text(json.dumps(coco_of(TRUTH)))
    command = ["convert", str(tmp_path / "a.json"), "--images", str(images), "--output"]
    output = tmp_path / "out"
    assert main([*command, str(output)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(output / "data.yaml")
    before = (output / "data.yaml").stat().st_ino
    assert main([*command, str(output)]) == 2
    assert f"{output} exists already: --force replaces it" in capsys.readouterr().err
    assert (output / "data.yaml").stat().st_ino == before
    assert main([*command, str(output), "--force"]) == 0
    assert_same(read_back(output), TRUTH)

    # Whatever else a folder holds is not ours to replace, and the sources are not either.
    assert main([*command, str(images), "--force"]) == 2
    assert "is not a data set of this command's making" in capsys.readouterr().err
    inside = ["convert", str(tmp_path / "a.json"), "--images", str(output / "images" / "train")]
    assert main([*inside, "--output", str(output), "--force"]) == 2
    assert "which is read" in capsys.readouterr().err
    by_hand = (output / "data.yaml").read_text().partition("\n")[2]  # with the same parts
    (output / "data.yaml").write_text(by_hand)
    assert main([*command, str(output), "--force"]) == 2
    assert "is not a data set of this command's making" in capsys.readouterr().err
    assert sorted(path.name for path in images.iterdir()) == sorted(TRUTH)


FULL_DISK = """
import resource, sys
from model.__main__ import main

resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))  # an image is larger
sys.exit(main(sys.argv[1:]))
"""


def test_a_full_disk_is_one_line_and_leaves_nothing(
    tmp_path: Path, images: Path, repo_dir: Path
) -> None:
    write_voc(tmp_path / "voc", TRUTH)
    for file in images.iterdir():
        assert file.stat().st_size > 500
    before = sorted(tmp_path.iterdir())
    command = ["convert", "voc", "--images", "images", "--output", "out"]
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, *command],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(repo_dir)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("python -m model convert: [Errno 27] File too large")
    assert done.stderr.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before
