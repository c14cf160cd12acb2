"""Downloads, read by other programs' readers."""

import base64
import csv
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from playwright.sync_api import Download, Page
from playwright.sync_api import Error as PlaywrightError
from pycocotools.coco import COCO

from server.api.schemas import DetectResponse
from tests.browser.conftest import Open, Visit
from tests.support.processes import ServerProcess

pytestmark = pytest.mark.slow


def download(visit: Visit, selector: str) -> tuple[str, bytes]:
    with visit.page.expect_download() as started:
        visit.page.locator(selector).click()
    given: Download = started.value
    return given.suggested_filename, Path(given.path()).read_bytes()


@pytest.fixture
def visit(open_page: Open, url: str, samples: list[Path]) -> Visit:
    visit = open_page(url, expected="status of 415")
    visit.pick(*samples[:2], {"name": "notes.jpg", "mimeType": "image/jpeg", "buffer": b"text"})
    visit.done(2)
    visit.page.locator(".item[data-state=failed]").wait_for()
    visit.set_number("conf-number", 0.5)
    return visit


@pytest.fixture
def there(server: tuple[ServerProcess, httpx.Client], samples: list[Path]) -> list[dict[str, Any]]:
    """What the server answers at the same thresholds."""
    answers = [
        server[1].post("/detect", content=each.read_bytes(), params={"conf": 0.5})
        for each in samples[:2]
    ]
    return [answer.json()["results"][0] for answer in answers]


def test_json_is_the_servers_answer(visit: Visit, there: list[dict[str, Any]]) -> None:
    name, content = download(visit, "[data-download=json]")
    assert name == "detections.json"
    answer = DetectResponse.model_validate_json(content)
    assert answer.model.name == "yolov8n-fla-bccd"
    assert [each.filename for each in answer.results] == ["smear_1.jpg", "smear_2.jpg", "notes.jpg"]
    for mine, its in zip(answer.results, there, strict=False):
        assert (mine.width, mine.height, mine.truncated) == (its["width"], its["height"], False)
        assert [each.score for each in mine.detections] == [d["score"] for d in its["detections"]]
    failed = answer.results[2]
    assert failed.error is not None
    assert failed.error.code == "unsupported_image"


def test_csv_has_a_line_for_each_detection(visit: Visit, there: list[dict[str, Any]]) -> None:
    name, content = download(visit, "[data-download=csv]")
    assert name == "detections.csv"
    rows = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"))))
    expected = [d for result in there for d in result["detections"]]
    assert [float(row["score"]) for row in rows] == [d["score"] for d in expected]
    assert [row["class_name"] for row in rows] == [d["class_name"] for d in expected]
    assert float(rows[0]["x1"]) == pytest.approx(expected[0]["box"]["x1"], abs=0.011)


def test_coco_is_read_by_pycocotools(
    visit: Visit, there: list[dict[str, Any]], tmp_path: Path
) -> None:
    name, content = download(visit, "[data-download=coco]")
    assert name == "detections-coco.json"
    file = tmp_path / name
    file.write_bytes(content)
    coco = COCO(str(file))
    assert [each["file_name"] for each in coco.loadImgs([1, 2])] == ["smear_1.jpg", "smear_2.jpg"]
    names = [each["name"] for each in coco.loadCats(coco.getCatIds())]
    assert names == ["RBC", "WBC", "Platelets"]
    for image_id, its in zip((1, 2), there, strict=True):
        found = coco.loadAnns(coco.getAnnIds(imgIds=[image_id]))
        assert len(found) == len(its["detections"])
        box = its["detections"][0]["box"]
        wanted = [box["x1"], box["y1"], box["x2"] - box["x1"], box["y2"] - box["y1"]]
        assert found[0]["bbox"] == pytest.approx(wanted, abs=0.03)
    evaluated = coco.loadRes([dict(each) for each in json.loads(content)["annotations"]])
    assert len(evaluated.getAnnIds()) == sum(len(its["detections"]) for its in there)


def test_yolo_labels_are_shares_of_the_image(visit: Visit, there: list[dict[str, Any]]) -> None:
    name, content = download(visit, "[data-download=yolo]")
    assert name == "detections-yolo.zip"
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        names = ["classes.txt", "labels/smear_1.txt", "labels/smear_2.txt"]
        assert sorted(archive.namelist()) == names
        assert archive.read("classes.txt").decode().split() == ["RBC", "WBC", "Platelets"]
        labels = np.loadtxt(io.BytesIO(archive.read("labels/smear_1.txt")), ndmin=2)
    boxes = [list(d["box"].values()) for d in there[0]["detections"]]
    assert labels[:, 0].tolist() == [d["class_id"] for d in there[0]["detections"]]
    corners = np.concatenate(
        [labels[:, 1:3] - labels[:, 3:] / 2, labels[:, 1:3] + labels[:, 3:] / 2], axis=1
    )
    np.testing.assert_allclose(corners * [640, 480, 640, 480], boxes, atol=0.02)


@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_the_annotated_image_has_the_images_size_and_boxes(
    visit: Visit, samples: list[Path], kind: str
) -> None:
    name, content = download(visit, f"[data-image='image/{kind}']")
    assert name == f"smear_1-boxes.{kind.replace('e', '')}"
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    plain = cv2.imread(str(samples[0]))
    assert image is not None
    assert plain is not None
    assert image.shape == plain.shape
    changed = np.abs(image.astype(int) - plain).max(axis=2) > 60
    assert 0.01 < changed.mean() < 0.3


def zipped(page: Page, files: list[tuple[str, str]]) -> zipfile.ZipFile:
    """What the page's writer makes of paths and texts, as Python reads it."""
    encoded = page.evaluate(
        """async (files) => {
          const { zip } = await import("./page/zip.js");
          const reader = new FileReader();
          const read = new Promise((done) => { reader.onload = () => done(reader.result); });
          reader.readAsDataURL(zip(files));
          return (await read).split(",")[1];
        }""",
        files,
    )
    return zipfile.ZipFile(io.BytesIO(base64.b64decode(encoded)))


def test_a_zip_holds_what_was_put_in(open_page: Open, url: str) -> None:
    page = open_page(url).page
    characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
    paths = st.text(characters, min_size=1, max_size=80)

    @settings(max_examples=50, deadline=None)
    @given(st.dictionaries(paths, st.text(st.characters(exclude_categories=["Cs"]))))
    @example({})
    @example({"labels/图 1 é😀.txt": "", "A": "a", "a": "A"})
    @example({"x" * 60_000: "a long name", "a": "x" * 65_535, "b": "é" * 1_000_000})
    @example({f"labels/{i}.txt": f"{i}\n" * i for i in range(2_000)})
    def check(files: dict[str, str]) -> None:
        with zipped(page, list(files.items())) as archive:
            assert archive.testzip() is None
            assert archive.namelist() == list(files)
            assert {path: archive.read(path).decode() for path in files} == files

    check()


def test_a_zip_of_more_files_than_it_can_count_is_refused(open_page: Open, url: str) -> None:
    page = open_page(url).page
    with pytest.raises(PlaywrightError, match="65536 files in a zip; the limit is 65535"):
        page.evaluate(
            "import('./page/zip.js').then(({ zip }) => zip(Array(65536).fill(['a', ''])))"
        )


def test_hostile_names_are_harmless(open_page: Open, url: str, samples: list[Path]) -> None:
    names = [
        '../../a".jpg',
        "=HYPERLINK(1)+A1.jpg",
        "A.jpg",
        "a.png",
        "..",
        "图 1.jpg",
        "con,ma.jpg",
        "CON.jpg",
        "\n=1.jpg",
    ]
    visit = open_page(url)
    visit.page.evaluate("window.made = import('./page/formats.js').then((all) => window.f = all)")
    visit.page.wait_for_function("() => window.f")
    made = visit.page.evaluate(
        """(names) => {
          const box = {x1: 1, y1: 2, x2: 3, y2: 4};
          const detections = [{class_id: 0, class_name: "=1+1", score: 0.5, box}];
          const images = names.map((name) => (
            {name, width: 10, height: 10, truncated: false, error: null, detections}));
          return [Object.keys(f.asYolo(images, ["a\\nb"])), f.asCsv(images),
                  f.asYolo(images, ["a\\nb"])["classes.txt"]];
        }""",
        names,
    )
    paths, text, classes = made
    stems = [path.removeprefix("labels/").removesuffix(".txt") for path in paths[1:]]
    assert stems == [
        "a_",
        "=HYPERLINK(1)+A1",
        "A",
        "a-2",
        "image",
        "图 1",
        "con,ma",
        "_CON",
        "_=1",
    ]
    assert classes == "a b\n"
    rows = list(csv.DictReader(io.StringIO(text.removeprefix("\ufeff"))))
    assert [row["filename"].removeprefix("'") for row in rows] == names
    for row in rows:
        assert row["class_name"] == "'=1+1"
        assert row["filename"][0] not in "=+-@\n"
