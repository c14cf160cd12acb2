from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from server.errors import TooLarge
from server.inference.artifact import load_artifact
from server.inference.detector import Detector, finish, prepare_encoded, prepare_image, stacked
from server.inference.session import Session
from server.vision.decode import decode
from server.vision.nms import DetectParameters
from tests.support.artifacts import paint, tiny_artifact, tiny_candidates


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    artifact = load_artifact(tiny_artifact(tmp_path_factory.mktemp("model") / "tiny.onnx"))
    session = Session.open(artifact, device="cpu", threads=1)
    return Detector(artifact, session, max_batch_size=2)


def test_a_painted_cell_is_found_in_original_pixels(detector: Detector) -> None:
    # 128 x 128 is scaled by 1/2: one cell of the input is 64 x 64 original pixels.
    image = np.zeros((128, 128, 3), np.uint8)
    image[64:, :64] = (255, 100, 16)
    (found,) = detector.detect([image], DetectParameters())
    assert (found.width, found.height, found.truncated) == (128, 128, False)
    np.testing.assert_array_equal(found.detections.boxes, [[0, 60, 68, 128]])  # grown and clipped
    np.testing.assert_array_equal(found.detections.scores, np.ones(1, np.float32))
    np.testing.assert_array_equal(found.detections.class_ids, [1])


def test_padding_is_taken_off_again(detector: Detector) -> None:
    # Wide and flat: in the bucket of 32 x 64 with 8 grey rows above and below.
    image = paint((16, 64), {})
    image[:, 32:] = (255, 0, 0)
    (found,) = detector.detect([image], DetectParameters())
    np.testing.assert_array_equal(found.detections.boxes, [[32, 0, 64, 16]])


def images_of_many_sizes() -> list[NDArray[np.uint8]]:
    random = np.random.default_rng(4)
    sizes = [(64, 64), (32, 64), (64, 32), (100, 90), (20, 64), (64, 20), (33, 64)] * 2
    return [random.integers(140, 256, (*size, 3), np.uint8) for size in sizes]


def test_many_images_together_are_found_as_each_alone(detector: Detector) -> None:
    images = images_of_many_sizes()
    parameters = DetectParameters(conf=0.05)
    together = detector.detect(images, parameters)
    assert len(together) == len(images)
    for image, found in zip(images, together, strict=True):
        (alone,) = detector.detect([image], parameters)
        assert (found.height, found.width) == image.shape[:2]
        assert len(found.detections.scores) > 0
        np.testing.assert_array_equal(found.detections.boxes, alone.detections.boxes)
        np.testing.assert_array_equal(found.detections.scores, alone.detections.scores)
        np.testing.assert_array_equal(found.detections.class_ids, alone.detections.class_ids)


def test_no_images_have_no_detections(detector: Detector) -> None:
    assert detector.detect([], DetectParameters()) == []


def test_bytes_are_prepared_as_their_pixels_are(tmp_path: Path) -> None:
    metadata = load_artifact(tiny_artifact(tmp_path / "tiny.onnx")).metadata
    image = cv2.resize(np.arange(72, dtype=np.uint8).reshape(4, 6, 3) * 3, (600, 400))
    data = cv2.imencode(".jpg", image)[1].tobytes()
    exact, stage_s = prepare_encoded(data, metadata, max_pixels=240_000, dct_scaling=False)
    expected = prepare_image(decode(data, max_pixels=240_000), metadata)
    np.testing.assert_array_equal(exact.canvas, expected.canvas)
    assert exact.placed == expected.placed
    assert set(stage_s) == {"decode", "letterbox"}
    reduced, _ = prepare_encoded(data, metadata, max_pixels=240_000, dct_scaling=True)
    assert (reduced.bucket_hw, reduced.placed.resized_hw) == (exact.bucket_hw, (43, 64))
    assert reduced.placed.original_hw == (400, 600)
    np.testing.assert_allclose(reduced.canvas.astype(int), exact.canvas.astype(int), atol=6)
    for either in (False, True):
        with pytest.raises(TooLarge):
            prepare_encoded(data, metadata, max_pixels=239_999, dct_scaling=either)


def test_a_cell_is_found_in_original_pixels_at_reduced_scale(tmp_path: Path) -> None:
    metadata = load_artifact(tiny_artifact(tmp_path / "tiny.onnx")).metadata
    image = np.zeros((1024, 1024, 3), np.uint8)
    image[512:, :512] = (16, 100, 255)  # BGR, as OpenCV encodes
    data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
    prepared, _ = prepare_encoded(data, metadata, max_pixels=10**7, dct_scaling=True)
    (candidates,) = tiny_candidates(prepared.canvas[None])
    found = finish(candidates, prepared, metadata, DetectParameters())
    assert (found.width, found.height) == (1024, 1024)
    np.testing.assert_allclose(found.detections.boxes, [[0, 480, 544, 1024]], atol=4)


def test_a_batch_of_one_is_not_copied() -> None:
    canvases = [np.full((32, 64, 3), value, np.uint8) for value in (1, 2)]
    assert np.shares_memory(stacked(canvases[:1]), canvases[0])
    np.testing.assert_array_equal(stacked(canvases), np.stack(canvases))
