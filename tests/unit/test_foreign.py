"""Checkpoints of patched copies of ultralytics, which are not installed here."""

import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.ops import xywh2xyxy

from export.__main__ import main
from export.checkpoint import load_checkpoint
from export.compare import candidate_difference
from export.errors import CheckpointRefused, ModelUnsupported
from model.blocks import BottleneckFLA
from model.focused_linear_attention import FocusedLinearAttention
from model.registration import architecture, register
from server.artifact import load_artifact
from server.session import Session

TUTORIALS = ("tutorial_flattention_layers", "tutorial_c2f_fla_neck")


@pytest.fixture(params=TUTORIALS)
def tutorial(request: pytest.FixtureRequest, shared_dir: Path) -> Path:
    return shared_dir / "checkpoints" / f"{request.param}.pt"


def recorded(tutorial: Path, imgsz: int) -> tuple[Any, Any]:
    """(3, H, W, 3) uint8 RGB pictures and the (3, 7, A) that the fork itself gave for them."""
    with np.load(tutorial.with_name(f"{tutorial.stem}_{imgsz}.npz")) as file:
        return file["images_rgb_uint8_nhwc"], file["output"]


@pytest.mark.parametrize("imgsz", [160, 320])
def test_a_tutorial_checkpoint_gives_what_its_fork_gave(tutorial: Path, imgsz: int) -> None:
    images, expected = recorded(tutorial, imgsz)
    model = load_checkpoint(tutorial).model
    with torch.inference_mode():
        output = model(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)[0].numpy()
    boxes, expected_boxes = (xywh2xyxy(each[:, :4].swapaxes(1, 2)) for each in (output, expected))
    np.testing.assert_allclose(boxes, expected_boxes, atol=1e-2, rtol=0)
    np.testing.assert_allclose(output[:, 4:], expected[:, 4:], atol=5e-5, rtol=0)


@pytest.mark.slow
def test_a_tutorial_checkpoint_is_exported_with_rectangles(tutorial: Path, tmp_path: Path) -> None:
    output = tmp_path / "tutorial.onnx"
    assert main([str(tutorial), "-o", str(output), "--imgsz", "320"]) == 0
    artifact = load_artifact(output)
    assert artifact.metadata.class_names == ("RBC", "WBC", "Platelets")
    assert (192, 320) in artifact.metadata.buckets
    session = Session.open(artifact, device="cpu")
    for imgsz in (160, 320):
        images, expected = recorded(tutorial, imgsz)
        for candidates, predictions in zip(session.run(images), expected, strict=True):
            difference = candidate_difference(candidates, predictions)
            assert difference.boxes_px <= 1e-2
            assert difference.scores <= 5e-5
    session.close()


@pytest.fixture
def fork() -> Iterator[ModuleType]:
    """A module that is there while a checkpoint is written, and gone when it is read."""
    module = ModuleType("somebodys_fork")
    sys.modules[module.__name__] = module
    yield module
    sys.modules.pop(module.__name__, None)


def checkpoint_of(fork: ModuleType, layer: nn.Module, class_name: str, path: Path) -> Path:
    """Writes a network whose layer 10 is `layer` under a foreign class name."""
    register()
    torch.manual_seed(0)
    network = DetectionModel(architecture("yolov8n-fla"), nc=2, verbose=False)
    network.names = {0: "a", 1: "b"}
    foreign = type(class_name, (nn.Module,), {"__module__": fork.__name__})
    setattr(fork, class_name, foreign)
    moved = deepcopy(layer)
    for parameter in moved.parameters():
        nn.init.normal_(parameter, std=0.1)
    old = network.model[10]
    moved.__dict__.update(i=old.i, f=old.f, type="", np=0)
    moved.__class__ = foreign
    network.model[10] = moved
    torch.save({"model": network}, path)
    del sys.modules[fork.__name__]
    return path


@pytest.mark.parametrize("class_name", ["FocusedLinearAttention", "FLAttention"])
@pytest.mark.parametrize(
    "form",
    [{}, {"fused_qkv": True}, {"num_patches": 400}, {"sr_ratio": 2, "num_patches": 400}],
    ids=["separate", "fused", "with encoding", "reduced"],
)
def test_either_name_and_every_form_is_taken_over_under_any_path(
    fork: ModuleType, tmp_path: Path, class_name: str, form: dict[str, Any]
) -> None:
    layer = FocusedLinearAttention(256, num_heads=4, qkv_bias=True, kernel_size=3, **form)
    path = checkpoint_of(fork, layer, class_name, tmp_path / "fork.pt")
    ours = load_checkpoint(path).model.model[10]
    assert type(ours) is FocusedLinearAttention
    assert ours.__dict__["i"] == 10
    assert ours.__dict__["f"] == -1
    assert ours.summed_keys == ("num_patches" not in form)
    layer.load_state_dict(ours.state_dict())
    layer.summed_keys = ours.summed_keys
    x = torch.randn(1, 256, 6, 10)
    torch.testing.assert_close(ours(x), layer.eval()(x))


def test_attention_stays_only_where_there_is_no_shortcut(tutorial: Path) -> None:
    bottlenecks = [
        m for m in load_checkpoint(tutorial).model.modules() if isinstance(m, BottleneckFLA)
    ]
    assert len(bottlenecks) == (4 if "c2f" in tutorial.stem else 0)
    assert all((m.attention is None) == m.add for m in bottlenecks)


def test_a_layer_of_that_name_with_other_parameters_is_listed(
    fork: ModuleType, tmp_path: Path
) -> None:
    path = checkpoint_of(fork, nn.Linear(3, 5), "FLAttention", tmp_path / "fork.pt")
    with pytest.raises(ModelUnsupported, match=r"FLAttention is not the .*'weight': \(5, 3\)"):
        load_checkpoint(path)


def test_a_class_of_another_name_is_refused_by_its_name(fork: ModuleType, tmp_path: Path) -> None:
    path = checkpoint_of(fork, nn.Linear(3, 5), "SomeAttention", tmp_path / "fork.pt")
    with pytest.raises(CheckpointRefused, match=r"it asks for somebodys_fork\.SomeAttention"):
        load_checkpoint(path)
