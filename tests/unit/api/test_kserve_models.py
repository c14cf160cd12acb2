from pathlib import Path

import numpy as np
import pytest

from server.api.kserve.models import (
    InferModel,
    detection_tensors,
    images_in,
    infer_models,
)
from server.api.kserve.tensors import InputTensor
from server.errors import MalformedRequest, NoImage, UndecodableImage
from server.inference.artifact import Artifact, load_artifact
from server.inference.detector import ImageDetections
from server.serving.pipeline import Found
from server.vision.nms import Detections
from tests.support.artifacts import tiny_artifact


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return load_artifact(tiny_artifact(tmp_path_factory.mktemp("models") / "tiny.onnx"))


def found(count: int) -> Found:
    boxes = np.arange(count * 4, dtype=np.float32).reshape(count, 4)
    scores = np.linspace(1, 0.5, count, dtype=np.float32)
    detections = Detections(boxes, scores, np.arange(count, dtype=np.int64))
    return Found(ImageDetections(detections, 64, 64, False), {})


def test_a_shape_that_never_changes_is_told(tmp_path: Path) -> None:
    path = tiny_artifact(tmp_path / "one.onnx", buckets=[(64, 64)], max_candidates=3)
    _, raw = infer_models(load_artifact(path))
    assert raw.input.shape == (-1, 64, 64, 3)
    assert raw.outputs[0].shape == (-1, 3, 6)


def test_images_are_counted_before_their_content_is_looked_at(artifact: Artifact) -> None:
    whole, raw = infer_models(artifact)

    def count(model: InferModel, name: str, datatype: str, shape: tuple[int, ...]) -> int:
        return images_in(InputTensor(name, datatype, shape, []), model, artifact.metadata)

    assert count(whole, "image", "BYTES", (10**9,)) == 10**9
    assert count(raw, "images", "UINT8", (10**9, 32, 64, 3)) == 10**9
    with pytest.raises(NoImage, match="'image' holds no image"):
        count(whole, "image", "BYTES", (0,))
    with pytest.raises(
        MalformedRequest, match=r"64 x 65 pixels .* takes 64 x 64, 32 x 64, 64 x 32"
    ):
        count(raw, "images", "UINT8", (1, 64, 65, 3))


def test_detections_are_filled_up_to_the_fullest_image() -> None:
    broken = UndecodableImage("the JPEG image is cut off")
    boxes, scores, class_ids, counts, errors = detection_tensors([found(1), broken, found(3)])
    for tensor, shape, dtype in (
        (boxes, (3, 3, 4), np.float32),
        (scores, (3, 3), np.float32),
        (class_ids, (3, 3), np.int64),
        (counts, (3,), np.int64),
    ):
        values = np.asarray(tensor.values)
        assert values.shape == shape
        assert values.dtype == dtype
    assert np.asarray(counts.values).tolist() == [1, -1, 3]
    assert errors.values == ["", "undecodable_image: the JPEG image is cut off", ""]
    np.testing.assert_array_equal(np.asarray(boxes.values)[2], found(3).detections.detections.boxes)
    assert np.asarray(boxes.values)[0].tolist() == [[0, 1, 2, 3], [0] * 4, [0] * 4]
    assert np.asarray(scores.values)[0].tolist() == [1, 0, 0]
    assert np.asarray(class_ids.values)[:2].tolist() == [[0, -1, -1], [-1, -1, -1]]


def test_where_nothing_was_found_there_are_no_rows() -> None:
    boxes, *_, counts, _ = detection_tensors([found(0), found(0)])
    assert np.asarray(boxes.values).shape == (2, 0, 4)
    assert np.asarray(counts.values).tolist() == [0, 0]
