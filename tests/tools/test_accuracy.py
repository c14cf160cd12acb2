import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from benchmarks.accuracy import AccuracyError, detect, main, read_result, without_nan
from export.errors import DatasetInvalid
from export.verification.coco_figures import coco_accuracy, iou, match, recall_at
from export.verification.yolo_dataset import Boxes, LabelledImage, label_path, read_dataset

NAMES = {0: "RBC", 1: "WBC", 2: "Platelets"}
NONE = Boxes(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0))


def labelled(seed: int, count: int) -> LabelledImage:
    """An image of 640x480 with `count` boxes on a grid, so that none overlaps another."""
    draw = np.random.default_rng(seed)
    cells = draw.permutation(48)[:count]
    corners = np.stack([cells % 8 * 80, cells // 8 * 80], axis=1) + draw.uniform(0, 20, (count, 2))
    xyxy = np.hstack([corners, corners + draw.uniform(20, 60, (count, 2))])
    truth = Boxes(xyxy, draw.integers(0, 3, count), np.ones(count))
    return LabelledImage(Path(f"{seed}.jpg"), 640, 480, truth)


def perfect(image: LabelledImage) -> Boxes:
    draw = np.random.default_rng(len(image.truth.scores))
    scores = draw.permutation(np.linspace(0.3, 0.9, len(image.truth.scores)))
    return Boxes(image.truth.xyxy, image.truth.class_ids, scores)


def reordered(boxes: Boxes, order: np.ndarray) -> Boxes:
    return Boxes(boxes.xyxy[order], boxes.class_ids[order], boxes.scores[order])


IMAGES = [labelled(seed, count) for seed, count in enumerate([12, 5, 0, 30])]


def test_perfect_detections_score_one_in_every_class() -> None:
    accuracy = coco_accuracy(IMAGES, [perfect(image) for image in IMAGES], NAMES)
    assert accuracy.map50_95 == pytest.approx(1.0)
    assert accuracy.map50 == pytest.approx(1.0)
    assert accuracy.per_class == {
        name: {"ap50_95": pytest.approx(1.0), "ap50": pytest.approx(1.0)} for name in NAMES.values()
    }


def test_no_detections_at_all_score_zero() -> None:
    assert coco_accuracy(IMAGES, [NONE] * len(IMAGES), NAMES).map50_95 == 0


def test_a_class_without_objects_has_no_figure_and_does_not_weigh_on_the_mean() -> None:
    names = NAMES | {3: "Parasite"}
    accuracy = coco_accuracy(IMAGES, [perfect(image) for image in IMAGES], names)
    assert np.isnan(accuracy.per_class["Parasite"]["ap50"])
    assert accuracy.map50 == pytest.approx(1.0)


def test_the_order_of_images_and_of_detections_does_not_matter() -> None:
    draw = np.random.default_rng(7)
    noisy = [
        Boxes(
            image.truth.xyxy + draw.normal(0, 6, image.truth.xyxy.shape),
            image.truth.class_ids,
            draw.uniform(0.01, 1, len(image.truth.scores)),
        )
        for image in IMAGES
    ]
    accuracy = coco_accuracy(IMAGES, noisy, NAMES)
    assert 0.1 < accuracy.map50_95 < 0.95
    images = [3, 1, 0, 2]
    shuffled = [reordered(noisy[i], draw.permutation(len(noisy[i].scores))) for i in images]
    assert coco_accuracy([IMAGES[i] for i in images], shuffled, NAMES) == accuracy


def test_a_false_detection_on_an_image_without_objects_costs_precision() -> None:
    detections = [perfect(image) for image in IMAGES]
    detections[2] = Boxes(np.array([[0.0, 0, 50, 50]]), np.array([0]), np.array([0.99]))
    assert coco_accuracy(IMAGES, detections, NAMES).per_class["RBC"]["ap50"] < 1


def test_detections_past_max_det_do_not_count() -> None:
    detections = [perfect(image) for image in IMAGES]
    assert coco_accuracy(IMAGES, detections, NAMES, max_det=1).map50 < 0.9


def test_boxes_of_iou_0_6_count_at_0_5_and_not_at_0_75() -> None:
    image = LabelledImage(
        Path("a.jpg"), 640, 480, Boxes(np.array([[0.0, 0, 100, 100]]), np.array([0]), np.ones(1))
    )
    detection = Boxes(np.array([[0.0, 0, 100, 62]]), np.array([0]), np.array([0.5]))
    accuracy = coco_accuracy([image], [detection], {0: "RBC"})
    assert accuracy.map50 == pytest.approx(1.0)
    assert accuracy.map50_95 == pytest.approx(0.3)  # 0.50, 0.55 and 0.60 of ten thresholds


def test_recall_of_perfect_detections_above_the_threshold_is_one() -> None:
    recall = recall_at(0.25, IMAGES, [perfect(image) for image in IMAGES], NAMES)
    assert (recall.found, recall.labelled, recall.share) == (47, 47, 1.0)
    assert set(recall.per_class.values()) == {1.0}


def test_recall_leaves_out_scores_at_or_below_the_threshold_and_other_classes() -> None:
    truth = Boxes(
        np.array([[0.0, 0, 9, 9], [20, 0, 29, 9], [40, 0, 49, 9]]), np.array([0, 0, 1]), np.ones(3)
    )
    detected = Boxes(truth.xyxy, np.array([0, 0, 2]), np.array([0.25, 0.26, 0.9]))
    assert match(truth, detected, 0.25).tolist() == [False, True, False]


def test_one_detection_finds_one_object_only() -> None:
    twice = Boxes(np.array([[0.0, 0, 10, 10], [0, 0, 10, 11]]), np.array([0, 0]), np.ones(2))
    once = Boxes(np.array([[0.0, 0, 10, 11]]), np.array([0]), np.array([0.9]))
    assert match(twice, once, 0.25).tolist() == [False, True]


def test_iou_is_symmetric_and_zero_for_empty_boxes() -> None:
    a = np.array([[0.0, 0, 10, 10], [5, 5, 5, 5]])
    b = np.array([[0.0, 0, 10, 5], [5, 5, 5, 5], [20, 20, 30, 30]])
    np.testing.assert_allclose(iou(a, b), np.array([[0.5, 0, 0], [0, 0, 0]]))
    np.testing.assert_array_equal(iou(a, b), iou(b, a).T)


# the data set


@pytest.fixture
def data_yaml(tmp_path: Path) -> Path:
    """Three images: one labelled, one turned by EXIF, one without a label file."""
    for folder in ("images/val", "labels/val"):
        (tmp_path / folder).mkdir(parents=True)
    Image.new("RGB", (100, 50)).save(tmp_path / "images/val/a.jpg")
    (tmp_path / "labels/val/a.txt").write_text("1 0.5 0.5 0.2 0.4\n1 0.5 0.5 0.2 0.4\n\n")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (100, 50)).save(tmp_path / "images/val/b.jpg", exif=turned)
    (tmp_path / "labels/val/b.txt").write_text("0 0.5 0.5 1 1\n")
    Image.new("RGB", (30, 30)).save(tmp_path / "images/val/c.png")
    path = tmp_path / "data.yaml"
    path.write_text("path: .\nval: images/val\nnames: {0: RBC, 1: WBC}\n")
    return path


def test_labels_come_in_pixels_of_the_upright_image(data_yaml: Path) -> None:
    names, images = read_dataset(data_yaml, "val")
    assert names == {0: "RBC", 1: "WBC"}
    assert [(i.path.name, i.width, i.height) for i in images] == [
        ("a.jpg", 100, 50),
        ("b.jpg", 50, 100),
        ("c.png", 30, 30),
    ]
    np.testing.assert_allclose(images[0].truth.xyxy, [[40, 15, 60, 35]])  # the line stands twice
    np.testing.assert_allclose(images[1].truth.xyxy, [[0, 0, 50, 100]])
    assert images[2].truth.xyxy.shape == (0, 4)


def test_only_the_last_images_of_a_path_becomes_labels() -> None:
    assert label_path(Path("/images/x/images/val/a.b.jpg")) == Path("/images/x/labels/val/a.b.txt")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("data.yaml", "val: images/val\n", "names no classes"),
        ("data.yaml", "names: [a]\n", "no split 'val'"),
        ("data.yaml", "names: [a]\nval: elsewhere\n", "no such folder"),
        ("data.yaml", "names: [a]\nval: labels\n", "no images"),
        ("data.yaml", "{", "cannot read"),
        ("labels/val/a.txt", "0 1 2\n", "expected 5 values"),
        ("labels/val/a.txt", "0 1 2 3 x\n", "could not convert"),
        ("labels/val/a.txt", "7 0.5 0.5 1 1\n", "names no class 7"),
        ("images/val/a.jpg", "text", "cannot read"),
    ],
)
def test_a_broken_data_set_is_named(data_yaml: Path, file: str, text: str, message: str) -> None:
    (data_yaml.parent / file).write_text(text)
    with pytest.raises(DatasetInvalid, match=message):
        read_dataset(data_yaml, "val")


# the server


def result_of(image: LabelledImage, boxes: Boxes, names: dict[int, str]) -> dict[str, object]:
    """What `/detect` answers for one image."""
    return {
        "width": image.width,
        "height": image.height,
        "error": None,
        "truncated": False,
        "detections": [
            {
                "class_id": int(class_id),
                "class_name": names[int(class_id)],
                "score": float(score),
                "box": dict(zip(("x1", "y1", "x2", "y2"), map(float, box), strict=True)),
            }
            for box, class_id, score in zip(boxes.xyxy, boxes.class_ids, boxes.scores, strict=True)
        ],
    }


def test_classes_are_matched_by_name_and_foreign_ones_counted() -> None:
    image = IMAGES[0]
    other_ids = {2: "RBC", 0: "WBC", 1: "Platelets", 3: "dog"}
    sent = Boxes(np.tile([1.0, 2, 3, 4], (4, 1)), np.array([2, 0, 1, 3]), np.ones(4))
    boxes, foreign = read_result(result_of(image, sent, other_ids), image, NAMES)
    assert boxes.class_ids.tolist() == [0, 1, 2]
    assert foreign == 1


def test_a_result_of_another_size_or_with_an_error_stops_the_measurement() -> None:
    result = result_of(IMAGES[0], NONE, NAMES)
    with pytest.raises(AccuracyError, match="640x480, the server saw 480x640"):
        read_result(result | {"width": 480, "height": 640}, IMAGES[0], NAMES)
    with pytest.raises(AccuracyError, match="undecodable_image"):
        read_result(result | {"error": {"code": "undecodable_image"}}, IMAGES[0], NAMES)


def client_of(handler: Callable[[httpx.Request], httpx.Response]) -> httpx.Client:
    return httpx.Client(base_url="http://test", transport=httpx.MockTransport(handler))


def test_a_busy_server_is_asked_again_and_a_refusal_is_told(data_yaml: Path) -> None:
    _, images = read_dataset(data_yaml, "val")
    busy = iter([503, 503, 200])

    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url.params["conf"] == "0.001"
        assert request.content.count(b"filename=") == 3
        body: dict[str, object] = {"results": [{}] * 3}
        return httpx.Response(next(busy), json=body, headers={"Retry-After": "0"})

    assert len(detect(client_of(answer), images, {"conf": 0.001})["results"]) == 3
    with pytest.raises(AccuracyError, match="answered 413: too much"):
        detect(client_of(lambda _: httpx.Response(413, text="too much")), images, {})
    with pytest.raises(AccuracyError, match="no answer of a detector"):
        detect(client_of(lambda _: httpx.Response(200, text="<html>")), images, {})
    with pytest.raises(AccuracyError, match="got 1 results"):
        detect(client_of(lambda _: httpx.Response(200, json={"results": [{}]})), images, {})


def test_a_server_that_is_not_there_is_named(
    data_yaml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"http://127\.0\.0\.1:9 does not answer"):
        main(["--data", str(data_yaml), "--url", "http://127.0.0.1:9"])


@pytest.fixture
def server_url(data_yaml: Path) -> Iterator[str]:
    """A real HTTP server that knows the labels and misses image b."""
    names, images = read_dataset(data_yaml, "val")
    answers = {
        image.path.name: result_of(
            image, NONE if image.path.name == "b.jpg" else image.truth, names
        )
        for image in images
    }

    class Detect(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            sent = re.findall(rb'filename="([^"]+)"', content)
            body = {
                "model": {"name": "labels", "version": "0"},
                "results": [answers[name.decode()] for name in sent],
            }
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Detect) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("batch", ["1", "2", "8"])
def test_the_command_prints_the_figures_and_writes_them(
    data_yaml: Path, server_url: str, batch: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = data_yaml.parent / "figures.json"
    options = f"--url {server_url} --batch {batch} --recall-at 0.25 --api-key secret".split()
    main([*options, "--data", str(data_yaml), "--json", str(out)])
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert rows["all"] == ["0.5000", "0.5000", "0.5000"]
    assert rows["RBC"] == ["0.0000", "0.0000", "0.0000"]
    assert rows["WBC"] == ["1.0000", "1.0000", "1.0000"]
    assert "secret" not in out.read_text()
    figures = json.loads(out.read_text())
    assert figures["map50_95"] == pytest.approx(0.5)
    assert figures["recall"]["share"] == 0.5
    assert figures["model"] == {"name": "labels", "version": "0"}
    assert figures["images"] == 3
    assert figures["conf"] == 0.001


def test_figures_that_do_not_exist_are_null_in_json() -> None:
    assert (
        json.dumps(without_nan({"a": {"b": float("nan")}, "c": 1.5}))
        == '{"a": {"b": null}, "c": 1.5}'
    )
