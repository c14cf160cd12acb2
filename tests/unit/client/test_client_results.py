import subprocess
import sys

import numpy as np
import pytest
import supervision
from yolov8_fla_client.errors import Unavailable, UnexpectedResponse
from yolov8_fla_client.exchange import Response
from yolov8_fla_client.parameters import Parameters
from yolov8_fla_client.responses import error_of, read_health, read_model, read_results
from yolov8_fla_client.results import Box, Detection, ImageResult

FOUND = ImageResult(
    "a.jpg",
    64,
    48,
    False,
    None,
    (
        Detection(2, "Platelets", 0.9, Box(1.5, 2, 3, 4)),
        Detection(0, "RBC", 0.5, Box(5, 6, 7, 8.25)),
    ),
)
EMPTY = ImageResult("b.jpg", 64, 48, False, None, ())


def test_detections_as_arrays() -> None:
    assert FOUND.boxes.dtype == np.float32
    assert FOUND.boxes.tolist() == [[1.5, 2, 3, 4], [5, 6, 7, 8.25]]
    assert FOUND.scores.dtype == np.float32
    assert FOUND.scores.tolist() == pytest.approx([0.9, 0.5])
    assert FOUND.class_ids.dtype == np.int64
    assert FOUND.class_ids.tolist() == [2, 0]
    assert (EMPTY.boxes.shape, EMPTY.scores.shape, EMPTY.class_ids.shape) == ((0, 4), (0,), (0,))


def test_detections_as_supervisions() -> None:
    found = FOUND.to_supervision()
    assert isinstance(found, supervision.Detections)
    assert np.array_equal(found.xyxy, FOUND.boxes)
    assert found.data["class_name"].tolist() == ["Platelets", "RBC"]  # type: ignore[union-attr]
    assert len(found[found.confidence > 0.6]) == 1  # type: ignore[arg-type,operator]
    assert len(EMPTY.to_supervision()) == 0


def test_only_what_is_asked_for_is_loaded() -> None:
    code = (
        "import yolov8_fla_client, sys\n"
        "heavy = {'numpy', 'tqdm', 'supervision', 'cv2', 'server', 'onnxruntime', 'torch'}\n"
        "yolov8_fla_client.Client('http://x').close()\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("missing", "code", "told"),
    [
        ("httpx", "import yolov8_fla_client", "pip install httpx"),
        (
            "supervision",
            "from yolov8_fla_client import *; r.to_supervision()",
            "pip install supervision",
        ),
    ],
)
def test_a_library_that_is_not_there_is_named(missing: str, code: str, told: str) -> None:
    make = "import yolov8_fla_client.results as m; r = m.ImageResult('a', 1, 1, False, None, ())\n"
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n{'' if missing == 'httpx' else make}{code}"
    )
    # None in sys.modules is a ModuleNotFoundError, as of a library that is not installed.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert told in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", b'{"model": 3}', b"\xff"])
def test_an_answer_of_something_else_is_told(body: bytes) -> None:
    for read in (read_results, read_health, read_model):
        with pytest.raises(UnexpectedResponse, match="answered 200"):
            read(Response(200, {}, body))


@pytest.mark.parametrize(
    "wrong",
    [
        '"score": NaN',
        '"score": 1e999',
        '"class_id": 1e999',
        '"class_id": null',
        '"width": 0',
        '"width": null',
        '"height": "48"',
        '"width": true',
    ],
)
def test_a_value_that_can_not_be_is_no_answer(wrong: str) -> None:
    box = '{"x1": 1, "y1": 1, "x2": 2, "y2": 2}'
    found = f'{{"class_id": 1, "class_name": "a", "score": 0.5, "box": {box}, ZZ}}'
    image = (
        '{"filename": null, "width": 64, "height": 48, "truncated": false, "error": null, '
        f'"detections": [{found}], ZZ}}'
    )
    times = '{"decode": 1, "queue": 1, "inference": 1, "postprocess": 1, "total": 1}'
    body = (
        f'{{"model": {{"name": "m", "version": "v"}}, "results": [IMAGE], "timings_ms": {times}}}'
    ).replace("IMAGE", image)
    assert read_results(Response(200, {}, body.replace("ZZ", '"more": 1').encode()))[0].width == 64
    with pytest.raises(UnexpectedResponse, match="not this server's"):
        read_results(Response(200, {}, body.replace("ZZ", wrong).encode()))


def test_an_answer_nested_too_deep_is_told() -> None:
    deep = b"[" * 200_000
    with pytest.raises(UnexpectedResponse, match="RecursionError"):
        read_results(Response(200, {}, deep))
    assert isinstance(error_of(Response(503, {}, deep)), Unavailable)


def test_parameters_are_sent_as_they_are_given() -> None:
    chosen = Parameters(conf=0.5, classes=["a, b", 3], agnostic_nms=False)
    assert chosen.query() == [
        ("conf", "0.5"),
        ("agnostic_nms", "false"),
        ("classes", "a, b"),
        ("classes", "3"),
    ]
    assert chosen.chosen() == {"conf": 0.5, "agnostic_nms": False, "classes": ["a, b", 3]}
    assert Parameters(**chosen.arguments()) == chosen
    assert Parameters().query() == []
    with pytest.raises(TypeError, match="several"):
        Parameters(classes="RBC")
    with pytest.raises(ValueError, match="empty"):
        Parameters(classes=[])
