from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import Tensor, nn

from export.attention.focused_linear import ChannelFirstFLA
from export.optimize import optimize
from export.precision.half import LARGEST, rounding, to_half
from server.vision.decode import decode
from tests.support import networks
from tests.support.hard_maps import CHANNELS, adversarial
from tests.support.networks import graph_of
from tests.unit.export.test_rewrite import FORMS, trained


class Block(nn.Module):
    """A layer between two convolutions of the trunk that hand on what they get."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.before = nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.layer = layer
        self.after = nn.Conv2d(CHANNELS, CHANNELS, 1)
        for convolution in (self.before, self.after):
            nn.init.dirac_(convolution.weight)
            assert convolution.bias is not None
            nn.init.zeros_(convolution.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, 2·C, H, W): what the layer gave and what it got."""
        before = self.before(x)
        return torch.cat([self.after(self.layer(before)), before], dim=1)


class Residual(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.layer(x)
        return y


def traced(module: nn.Module) -> onnx.ModelProto:
    """An optimised graph of a module of maps, for any batch and map size."""
    return optimize(networks.traced(module, torch.zeros(2, CHANNELS, 6, 6)))


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    """Element type by tensor, constants included."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def test_on_a_cpu_every_value_is_rounded_too(tmp_path: Path) -> None:
    """Or what overflows on a GPU would pass for sound here, where float32 is what computes."""
    block = Block(nn.SiLU())
    block.before.weight.data *= 2
    half = to_half(traced(block))
    x = np.full((1, CHANNELS, 6, 6), 40000, np.float32)
    x[0, 0] = 1 / 3
    assert np.isfinite(outputs(half, x)).all()
    rounded = outputs(rounding(half), x)
    assert not np.isfinite(rounded[0, 1:CHANNELS]).any()
    assert rounded[0, CHANNELS, 0, 0] == 2 * np.float32(np.float16(1 / 3))


def outputs(model: onnx.ModelProto, x: NDArray[np.float32]) -> NDArray[np.float32]:
    (y,) = session(model).run(None, {model.graph.input[0].name: x})
    return np.asarray(y)


ALL_FORMS: dict[str, dict[str, Any]] = FORMS | {
    "p 2": {"focusing_factor": 2},
    "p 4": {"focusing_factor": 4},
    "p 32": {"focusing_factor": 32},
    "eight heads": {"num_heads": 8},
    "kernel 7": {"kernel_size": 7},
}


@pytest.mark.slow  # the exports take it, 17 of them
def test_no_map_of_ten_thousand_gives_nan_or_inf_in_either_precision() -> None:
    count = 0
    for seed, form in enumerate(ALL_FORMS):
        attention = trained(**ALL_FORMS[form])
        if seed % 3 == 0:  # queries and keys of small maps are all negative
            bias = attention.qkv.bias if attention.fused_qkv else attention.q.bias
            assert bias is not None
            nn.init.constant_(bias, -5)
        single = traced(Block(Residual(ChannelFirstFLA(attention))))
        half = to_half(single)
        sessions = [session(single), session(rounding(half))]
        for maps in adversarial(np.random.default_rng(seed)):
            count += len(maps)
            for runner in sessions:
                (y,) = runner.run(None, {"x": maps.astype(np.float32)})
                assert np.isfinite(y).all(), form
    assert count >= 10_000


@pytest.mark.parametrize("form", ["separate", "reduced", "p 2.5", "summed keys"])
def test_an_attention_gives_what_the_module_gives_to_float16_rounding(form: str) -> None:
    attention = trained(**FORMS[form])
    half = to_half(traced(Block(ChannelFirstFLA(attention))))
    x = torch.randn(3, CHANNELS, 6, 6).half().double()
    with torch.inference_mode():
        expected = attention(x).numpy()
    ours = outputs(rounding(half), x.float().numpy())[:, :CHANNELS]
    np.testing.assert_allclose(ours, expected, rtol=2**-10, atol=2**-11 * np.abs(expected).max())


def test_what_float16_cannot_hold_becomes_its_largest_number() -> None:
    attention = trained()
    half = to_half(traced(Block(Residual(ChannelFirstFLA(attention)))))
    x = torch.randn(2, CHANNELS, 6, 6).mul(2e4).clamp(-6e4, 6e4).half().double()
    with torch.inference_mode():
        expected = (x + attention(x)).numpy()
    assert np.abs(expected).max() > 2 * LARGEST
    ours = outputs(rounding(half), x.float().numpy())[:, :CHANNELS]
    np.testing.assert_allclose(ours, expected.clip(-LARGEST, LARGEST), rtol=1e-3, atol=50)


NETWORKS = {  # how many attentions each has
    "yolov8n-fla": 1,
    "yolov8n-c2f-fla": 4,
    "yolov8n": 0,
    "tutorial_c2f_fla_neck": 4,
    "tutorial_flattention_layers": 3,
}


def network(name: str, request: pytest.FixtureRequest) -> onnx.ModelProto:
    if name.startswith("tutorial"):
        return graph_of(request.getfixturevalue("shared_dir") / "checkpoints" / f"{name}.pt")
    return graph_of(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_only_attention_and_decoding_keep_float32(
    name: str, request: pytest.FixtureRequest
) -> None:
    single = network(name, request)
    before = single.SerializeToString()
    half = to_half(single)
    assert single.SerializeToString() == before
    assert half.graph.input == single.graph.input
    assert half.graph.output == single.graph.output

    types = types_of(half)
    convolutions = [node for node in half.graph.node if node.op_type == "Conv"]
    kept = [node for node in convolutions if types[node.output[0]] == TensorProto.FLOAT]
    # q, k, v, dwc and proj of each attention
    assert len(kept) == 5 * NETWORKS[name]
    assert len(convolutions) == len(kept) + 63
    casts = [sum(node.op_type == "Cast" for node in model.graph.node) for model in (single, half)]
    assert casts[1] - casts[0] == 2 * NETWORKS[name] + 2  # in and out, distributions and logits
    assert len(half.SerializeToString()) < 0.6 * len(before)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bccd", "tutorial_c2f_fla_neck", "tutorial_flattention_layers"])
def test_a_network_in_float16_answers_nearly_as_in_float32(
    name: str, request: pytest.FixtureRequest, repo_dir: Path
) -> None:
    single = (
        graph_of(repo_dir / "weights" / "yolov8n-fla-bccd.pt")
        if name == "bccd"
        else network(name, request)
    )
    half, single = session(rounding(to_half(single))), session(single)
    image = decode((repo_dir / "samples" / "smear_1.jpg").read_bytes(), max_pixels=10**7)
    for batch, input_hw in [(2, (160, 160)), (1, (480, 640))]:
        images = np.stack([cv2.resize(image, input_hw[::-1])] * batch)
        ours, theirs = (runner.run(None, {"images": images})[0] for runner in (half, single))
        assert ours.shape == theirs.shape
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours[..., 4], theirs[..., 4], rtol=2e-2, atol=5e-3)
        best = theirs[0, theirs[0, :, 4] > 0.3]
        assert len(best) or name != "bccd"
        for row in best:  # near ties change places
            assert np.abs(ours[0, :, :4] - row[:4]).max(1).min() < 0.3
