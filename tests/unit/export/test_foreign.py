"""Checkpoints of patched copies of ultralytics, which are not installed here."""

import json
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
from ultralytics.nn.modules import Conv
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.ops import xywh2xyxy

from export.__main__ import main
from export.attention.focused_linear import attention_of
from export.errors import ModelUnsupported
from export.sources.checkpoint import load_checkpoint
from export.verification.compare import candidate_difference
from model.attention.focused_linear import BottleneckFLA, FocusedLinearAttention
from model.registration import architecture, register
from server.inference.artifact import load_artifact
from server.inference.session import Session
from tests.support.forks import renamed, saved, small_network

TUTORIALS = ("tutorial_flattention_layers", "tutorial_c2f_fla_neck")


@pytest.fixture(params=TUTORIALS)
def tutorial(request: pytest.FixtureRequest, shared_dir: Path) -> Path:
    return shared_dir / "checkpoints" / f"{request.param}.pt"


def recorded(tutorial: Path, imgsz: int) -> tuple[Any, Any]:
    """(3, H, W, 3) uint8 RGB images and the (3, 7, A) that the fork itself gave for them."""
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


@pytest.mark.parametrize("encoded", [False, True])
@pytest.mark.parametrize("sr_ratio", [2, 4])
@pytest.mark.parametrize("bias", [False, True])
def test_reduced_keys_are_taken_over_at_any_map_size(
    fork: ModuleType, tmp_path: Path, encoded: bool, sr_ratio: int, bias: bool
) -> None:
    layer = FocusedLinearAttention(
        256,
        400 if encoded else None,
        num_heads=8,
        qkv_bias=bias,
        sr_ratio=sr_ratio,
        focusing_factor=4,
    )
    path = checkpoint_of(fork, layer, "FLAttention", tmp_path / "fork.pt")
    ours = load_checkpoint(path).model.model[10]
    assert (ours.sr_ratio, ours.focusing_factor, ours.num_heads) == (sr_ratio, 4, 8)
    layer.load_state_dict(ours.state_dict())
    layer.summed_keys = not encoded
    for height, width in ((8, 12), (20, 20)):
        x = torch.randn(1, 256, height, width)
        torch.testing.assert_close(ours(x), layer.eval()(x))


def golden(shared_dir: Path, name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """A published module's state, and the other things that were recorded of it."""
    with np.load(shared_dir / "golden" / "fla" / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    state = {
        key.removeprefix("state/"): torch.from_numpy(value)
        for key, value in arrays.items()
        if key.startswith("state/")
    }
    return state, arrays | json.loads(str(arrays["meta"]))


@pytest.mark.parametrize(
    "name",
    [
        "pvt_c32_h2_8x8_p4_k3_nobias",
        "pvt_c32_h4_16x16_sr2",
        "pvt_c64_h8_8x8_all_negative",
        "swin_c32_h8_20x20",
    ],
)
def test_parameters_alone_say_which_published_layer_it_is(shared_dir: Path, name: str) -> None:
    state, recorded = golden(shared_dir, name)
    ours = attention_of(state, recorded["focusing_factor"])
    assert ours.num_heads == recorded["num_heads"]
    tokens = torch.from_numpy(recorded["input"]).float().transpose(1, 2)
    x = tokens.reshape(*tokens.shape[:2], recorded["height"], recorded["width"])
    with torch.no_grad():
        y = ours(x).flatten(2).transpose(1, 2)
    np.testing.assert_allclose(y.numpy(), recorded["output"], atol=1e-5, rtol=1e-5)


def test_an_encoding_whose_map_is_no_square_is_named(shared_dir: Path) -> None:
    state, recorded = golden(shared_dir, "pvt_c64_h8_10x16_rect")
    with pytest.raises(ValueError, match="encoding is for 160 tokens, whose map does not show"):
        attention_of(state, recorded["focusing_factor"])


def bottleneck_of(fork: ModuleType, *, shortcut: bool, child: str) -> nn.Module:
    """A tutorial's bottleneck, which has an attention whether or not it is run."""
    layer: Any = nn.Module()
    layer.cv1, layer.cv2, layer.add = Conv(256, 256, 3), Conv(256, 256, 3), shortcut
    attention = FocusedLinearAttention(256, num_heads=8, qkv_bias=True, summed_keys=True)
    foreign = type("FocusedLinearAttention", (nn.Module,), {"__module__": fork.__name__})
    fork.FocusedLinearAttention = foreign  # type: ignore[attr-defined]
    attention.__class__ = foreign
    setattr(layer, child, attention)
    return layer  # type: ignore[no-any-return]


@pytest.mark.parametrize("child", ["FLA", "attn"])
@pytest.mark.parametrize("shortcut", [False, True])
def test_a_bottleneck_attends_only_where_it_has_no_shortcut(
    fork: ModuleType, tmp_path: Path, shortcut: bool, child: str
) -> None:
    layer = bottleneck_of(fork, shortcut=shortcut, child=child)
    path = checkpoint_of(fork, layer, "Bottleneck_FLA", tmp_path / "fork.pt")
    ours = load_checkpoint(path).model.model[10]
    assert type(ours) is BottleneckFLA
    x = torch.randn(1, 256, 6, 10)
    with torch.no_grad():
        y = ours.cv2(ours.cv1(x))
        expected = x + y if ours.attention is None else ours.attention(y)
        torch.testing.assert_close(ours(x), expected)
    assert (ours.attention is None) == shortcut


def test_a_bottleneck_without_its_attention_is_said_to_lack_it(
    fork: ModuleType, tmp_path: Path
) -> None:
    layer = bottleneck_of(fork, shortcut=False, child="FLA")
    del layer.FLA
    path = checkpoint_of(fork, layer, "Bottleneck_FLA", tmp_path / "fork.pt")
    with pytest.raises(ModelUnsupported, match=r"model\.10: .* \(it has 0 attentions, not one\)"):
        load_checkpoint(path)


def test_a_layer_of_that_name_with_other_parameters_is_listed(
    fork: ModuleType, tmp_path: Path
) -> None:
    path = checkpoint_of(fork, nn.Linear(3, 5), "FLAttention", tmp_path / "fork.pt")
    with pytest.raises(
        ModelUnsupported, match=r"model\.10: FLAttention is not the .*'weight': \(5, 3\)"
    ):
        load_checkpoint(path)


def test_heads_that_do_not_divide_the_channels_are_named(fork: ModuleType, tmp_path: Path) -> None:
    layer = FocusedLinearAttention(256, num_heads=4)
    layer.dwc = nn.Conv2d(24, 24, 5, padding=2, groups=24)
    path = checkpoint_of(fork, layer, "FLAttention", tmp_path / "fork.pt")
    with pytest.raises(ModelUnsupported, match=r"heads of 24 channels.* do not divide the 256"):
        load_checkpoint(path)


@pytest.mark.parametrize(("attribute", "value"), [("num_heads", 8), ("sr_ratio", 2)])
def test_attributes_that_contradict_the_parameters_are_named(
    fork: ModuleType, tmp_path: Path, attribute: str, value: int
) -> None:
    layer = FocusedLinearAttention(256, num_heads=4)
    setattr(layer, attribute, value)
    path = checkpoint_of(fork, layer, "FLAttention", tmp_path / "fork.pt")
    with pytest.raises(ModelUnsupported, match=rf"its {attribute} is {value}, its parameters"):
        load_checkpoint(path)


def test_a_layer_that_does_not_fit_where_it_stands_is_one_line(
    fork: ModuleType, tmp_path: Path
) -> None:
    layer = FocusedLinearAttention(128, num_heads=4)
    path = checkpoint_of(fork, layer, "FLAttention", tmp_path / "fork.pt")
    with pytest.raises(ModelUnsupported, match=r"its layers do not fit together: .*256") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_the_first_releases_names_are_known(tmp_path: Path) -> None:
    """Forks are of any age; until 8.0.9x all layers were in one module."""
    new = saved({"model": small_network()}, tmp_path / "new.pt")
    old = renamed(
        new,
        {
            "ultralytics.nn.modules.conv.Conv": "ultralytics.nn.modules.Conv",
            "ultralytics.nn.modules.block.C2f": "ultralytics.nn.modules.C2f",
            "ultralytics.nn.modules.head.Detect": "ultralytics.nn.modules.Detect",
        },
        tmp_path / "old.pt",
    )
    x = np.random.default_rng(0).random((1, 3, 64, 32), dtype=np.float32)
    np.testing.assert_array_equal(load_checkpoint(old).predict(x), load_checkpoint(new).predict(x))
