"""Checkpoints of patched copies of ultralytics, which are not installed here."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from ultralytics.nn.modules import Conv

from export.__main__ import main
from export.attention.focused_linear import attention_of
from export.errors import ModelUnsupported
from export.sources.checkpoint import load_checkpoint
from export.verification.compare import candidate_difference
from model.attention.focused_linear import BottleneckFLA, FocusedLinearAttention
from server.inference.artifact import load_artifact
from server.inference.session import Session
from tests.support.forks import ATTENTION, Fork, check_predictions, renamed, saved, small_network

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
    check_predictions(load_checkpoint(tutorial).predict, tutorial, imgsz)


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


@pytest.mark.parametrize("class_name", ["FocusedLinearAttention", "FLAttention"])
@pytest.mark.parametrize(
    "form",
    [{}, {"fused_qkv": True}, {"num_patches": 400}, {"sr_ratio": 2, "num_patches": 400}],
    ids=["separate", "fused", "with encoding", "reduced"],
)
def test_either_name_and_every_form_is_taken_over_under_any_path(
    fork: Fork, tmp_path: Path, class_name: str, form: dict[str, Any]
) -> None:
    layer = FocusedLinearAttention(32, num_heads=4, qkv_bias=True, kernel_size=3, **form)
    path = fork.save(tmp_path / "fork.pt", layer, f"somebodys_fork.{class_name}")
    ours = load_checkpoint(path).model.model[ATTENTION]
    assert type(ours) is FocusedLinearAttention
    assert ours.__dict__["i"] == ATTENTION
    assert ours.__dict__["f"] == -1
    assert ours.summed_keys == ("num_patches" not in form)
    layer.load_state_dict(ours.state_dict())
    layer.summed_keys = ours.summed_keys
    x = torch.randn(1, 32, 6, 10)
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
    fork: Fork, tmp_path: Path, encoded: bool, sr_ratio: int, bias: bool
) -> None:
    layer = FocusedLinearAttention(
        32,
        400 if encoded else None,
        num_heads=8,
        qkv_bias=bias,
        sr_ratio=sr_ratio,
        focusing_factor=4,
    )
    path = fork.save(tmp_path / "fork.pt", layer, "somebodys_fork.FLAttention")
    ours = load_checkpoint(path).model.model[ATTENTION]
    assert (ours.sr_ratio, ours.focusing_factor, ours.num_heads) == (sr_ratio, 4, 8)
    layer.load_state_dict(ours.state_dict())
    layer.summed_keys = not encoded
    for height, width in ((8, 12), (20, 20)):
        x = torch.randn(1, 32, height, width)
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


def bottleneck_of(fork: Fork, *, shortcut: bool, child: str) -> nn.Module:
    """A tutorial's bottleneck, which has an attention whether or not it is run."""
    layer: Any = nn.Module()
    layer.cv1, layer.cv2, layer.add = Conv(32, 32, 3), Conv(32, 32, 3), shortcut
    attention = FocusedLinearAttention(32, num_heads=8, qkv_bias=True, summed_keys=True)
    setattr(layer, child, fork.own(attention, "somebodys_fork.FocusedLinearAttention"))
    return layer  # type: ignore[no-any-return]


@pytest.mark.parametrize("child", ["FLA", "attn"])
@pytest.mark.parametrize("shortcut", [False, True])
def test_a_bottleneck_attends_only_where_it_has_no_shortcut(
    fork: Fork, tmp_path: Path, shortcut: bool, child: str
) -> None:
    layer = bottleneck_of(fork, shortcut=shortcut, child=child)
    path = fork.save(tmp_path / "fork.pt", layer, "somebodys_fork.Bottleneck_FLA")
    ours = load_checkpoint(path).model.model[ATTENTION]
    assert type(ours) is BottleneckFLA
    x = torch.randn(1, 32, 6, 10)
    with torch.no_grad():
        y = ours.cv2(ours.cv1(x))
        expected = x + y if ours.attention is None else ours.attention(y)
        torch.testing.assert_close(ours(x), expected)
    assert (ours.attention is None) == shortcut


def test_a_bottleneck_without_its_attention_is_said_to_lack_it(fork: Fork, tmp_path: Path) -> None:
    layer = bottleneck_of(fork, shortcut=False, child="FLA")
    del layer.FLA
    path = fork.save(tmp_path / "fork.pt", layer, "somebodys_fork.Bottleneck_FLA")
    with pytest.raises(ModelUnsupported, match=r"model\.4: .* \(it has 0 attentions, not one\)"):
        load_checkpoint(path)


def test_a_layer_of_that_name_with_other_parameters_is_listed(fork: Fork, tmp_path: Path) -> None:
    path = fork.save(tmp_path / "fork.pt", nn.Linear(3, 5), "somebodys_fork.FLAttention")
    with pytest.raises(
        ModelUnsupported, match=r"model\.4: FLAttention is not the .*'weight': \(5, 3\)"
    ):
        load_checkpoint(path)


def test_heads_that_do_not_divide_the_channels_are_named(fork: Fork, tmp_path: Path) -> None:
    layer = FocusedLinearAttention(32, num_heads=4)
    layer.dwc = nn.Conv2d(12, 12, 5, padding=2, groups=12)
    path = fork.save(tmp_path / "fork.pt", layer, "somebodys_fork.FLAttention")
    with pytest.raises(ModelUnsupported, match=r"heads of 12 channels.* do not divide the 32"):
        load_checkpoint(path)


@pytest.mark.parametrize(("attribute", "value"), [("num_heads", 8), ("sr_ratio", 2)])
def test_attributes_that_contradict_the_parameters_are_named(
    fork: Fork, tmp_path: Path, attribute: str, value: int
) -> None:
    layer = FocusedLinearAttention(32, num_heads=4)
    setattr(layer, attribute, value)
    path = fork.save(tmp_path / "fork.pt", layer, "somebodys_fork.FLAttention")
    with pytest.raises(ModelUnsupported, match=rf"its {attribute} is {value}, its parameters"):
        load_checkpoint(path)


def test_a_layer_that_does_not_fit_where_it_stands_is_one_line(fork: Fork, tmp_path: Path) -> None:
    layer = FocusedLinearAttention(16, num_heads=4)
    path = fork.save(tmp_path / "fork.pt", layer, "somebodys_fork.FLAttention")
    with pytest.raises(ModelUnsupported, match=r"its layers do not fit together: .*32") as caught:
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
