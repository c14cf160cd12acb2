import numpy as np
import pytest
import torch
from torch import nn
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.ops import xywh2xyxy

from export.candidates import Candidates
from export.errors import ModelUnsupported
from export.rewrite import rewrite
from model.registration import architecture, register

register()


@pytest.fixture(scope="module")
def network() -> DetectionModel:
    torch.manual_seed(0)
    network = DetectionModel(architecture("yolov8n-fla"), nc=3, verbose=False).eval()
    for layer in network.model[-1].cv3:  # spread the scores of an untrained head
        nn.init.normal_(layer[-1].weight, std=0.5)
    return network


@pytest.mark.parametrize("input_hw", [(64, 96), (288, 512)], ids=["all anchors", "the best 1000"])
def test_candidates_are_the_best_predictions_of_the_network(
    network: DetectionModel, input_hw: tuple[int, int]
) -> None:
    images = torch.randint(0, 256, (2, *input_hw, 3), dtype=torch.uint8)
    with torch.inference_mode():
        candidates = Candidates(rewrite(network))(images)
        predictions = network(images.permute(0, 3, 1, 2).float() / 255)[0]
    anchors = sum((input_hw[0] // s) * (input_hw[1] // s) for s in (8, 16, 32))
    assert candidates.shape == (2, min(anchors, 1000), 6)
    for rows, prediction in zip(candidates, predictions, strict=True):
        scores, class_ids = prediction[4:].max(0)
        order = scores.argsort(descending=True)[: len(rows)]
        torch.testing.assert_close(rows[:, 4], scores[order], rtol=1e-4, atol=1e-6)
        assert bool((rows[1:, 4] <= rows[:-1, 4]).all())
        boxes = xywh2xyxy(prediction[:4].T)
        for row in rows[:: max(1, len(rows) // 50)]:
            nearest = (boxes - row[:4]).abs().amax(1).argmin()
            torch.testing.assert_close(row[:4], boxes[nearest], rtol=0, atol=5e-3)
            assert row[5] == class_ids[nearest]


def test_images_of_a_batch_do_not_mix(network: DetectionModel) -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8))
    graph = Candidates(rewrite(network))
    with torch.inference_mode():
        torch.testing.assert_close(graph(images)[1:2], graph(images[1:2]), rtol=1e-4, atol=1e-4)


def test_another_head_is_refused_by_name(network: DetectionModel) -> None:
    headless = rewrite(network)
    headless.model[-1] = nn.Identity()
    with pytest.raises(ModelUnsupported, match="Identity"):
        Candidates(headless)
