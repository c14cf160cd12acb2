from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from export.attention.focused_linear import ChannelFirstFLA
from export.optimize import optimize
from export.precision.calibration import value_ranges
from export.precision.quantize import SILU_ENDS, quantize
from server.vision.decode import decode
from tests.support.hard_maps import adversarial
from tests.support.networks import graph_of, traced
from tests.unit.export.test_half import session
from tests.unit.export.test_rewrite import FORMS, trained


class Pixels(nn.Module):
    """A network on (B, H, W, 3) uint8 images: two convolutions that pay, one that does not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 32, 3, padding=1)
        self.third = nn.Conv2d(16, 32, 1)
        self.last = nn.Conv2d(64, 5, 1)
        self.first.weight.data /= 255

    def forward(self, images: Tensor) -> Tensor:
        """(B, 5, H, W)."""
        x = nn.functional.silu(self.first(images.permute(0, 3, 1, 2).float()))
        x = torch.cat(
            [nn.functional.silu(convolution(x)) for convolution in (self.second, self.third)], dim=1
        )
        y: Tensor = self.last(x)
        return y


def pixels(module: Pixels) -> onnx.ModelProto:
    example = torch.zeros(2, 16, 16, 3, dtype=torch.uint8)
    return optimize(traced(module, example, "images"))


def random_images(count: int = 4, input_hw: tuple[int, int] = (16, 24)) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (1, *input_hw, 3), np.uint8) for _ in range(count)]


def run(model: onnx.ModelProto, images: NDArray[np.generic]) -> NDArray[np.float32]:
    return np.asarray(session(model).run(None, {"images": images})[0])


def loss(model: onnx.ModelProto) -> float:
    """The largest error of a network in int8, as a share of its largest output."""
    images = random_images()[0]
    expected = run(model, images)
    error = np.abs(run(quantize(model, random_images()), images) - expected)
    return float(error.max() / np.abs(expected).max())


def constants(model: onnx.ModelProto) -> dict[str, NDArray[np.generic]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def optimised_operators(model: onnx.ModelProto, path: Path) -> list[str]:
    """What ONNX Runtime makes of a model."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return [node.op_type for node in onnx.load(path).graph.node]


def test_answers_stay_close_at_every_batch_and_size() -> None:
    single = pixels(Pixels())
    before = single.SerializeToString()
    reduced = quantize(single, iter(random_images()))
    assert single.SerializeToString() == before
    assert reduced.graph.input == single.graph.input
    assert reduced.graph.output == single.graph.output
    assert reduced.opset_import == single.opset_import
    for batch, input_hw in [(1, (16, 24)), (3, (24, 16))]:
        images = np.concatenate(random_images(batch, input_hw))
        expected = run(single, images)
        error = np.abs(run(reduced, images) - expected)
        assert 0 < error.max() < 0.03 * np.abs(expected).max()


def test_only_convolutions_with_channels_and_an_activation_are_quantised() -> None:
    reduced = quantize(pixels(Pixels()), random_images())
    convolutions = [node for node in reduced.graph.node if node.op_type == "Conv"]
    assert [node.output[0].endswith("/exact") for node in convolutions].count(True) == 2
    kept = {node.input[1] for node in convolutions if not node.output[0].endswith("/exact")}
    assert kept == {"first.weight", "last.weight"}


class Repeated(Pixels):
    def forward(self, images: Tensor) -> Tensor:
        """One convolution twice, at inputs of different ranges."""
        x = nn.functional.silu(self.first(images.permute(0, 3, 1, 2).float()))
        y: Tensor = self.last(
            torch.cat([nn.functional.silu(self.second(value)) for value in (x, 10 * x)], dim=1)
        )
        return y


def test_convolutions_may_share_a_weight() -> None:
    single = pixels(Repeated())
    assert loss(single) < 0.03


def test_tensorrt_gets_zero_points_of_zero_scales_by_channel_and_biases_in_float() -> None:
    reduced = quantize(pixels(Pixels()), random_images())
    values = constants(reduced)
    pairs = [node for node in reduced.graph.node if node.op_type.endswith("quantizeLinear")]
    pairs += [node for node in reduced.graph.node if node.op_type == "QuantizeLinear"]
    assert pairs
    for node in pairs:
        assert node.domain == ""
        assert values[node.input[2]].dtype == np.int8
        assert not values[node.input[2]].any()
    for node in reduced.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in values:
            weight = values[node.input[0]]
            assert weight.dtype == np.int8
            assert values[node.input[1]].shape == (len(weight),)
            assert weight.reshape(len(weight), -1).astype(int).__abs__().max(1).tolist() == (
                [127] * len(weight)
            )
            assert {a.name: a.i for a in node.attribute} == {"axis": 0}
        if node.op_type == "Conv":
            assert values[node.input[2]].dtype == np.float32


def test_onnx_runtime_makes_them_integer_convolutions_and_one_pass_of_silu(tmp_path: Path) -> None:
    # Two of them share their input, the pairs of which it must not merge.
    operators = optimised_operators(
        quantize(pixels(Pixels()), random_images()), tmp_path / "o.onnx"
    )
    assert operators.count("QLinearConv") == 2
    assert operators.count("QuickGelu") == 3
    assert "Sigmoid" not in operators


def test_ranges_are_those_of_all_images() -> None:
    network = Pixels()
    single = pixels(network)
    images = [*random_images(3), *random_images(2, (32, 16)), np.zeros((1, 16, 16, 3), np.uint8)]
    (name,) = [n.output[0] for n in single.graph.node if list(n.input[1:2]) == ["first.weight"]]
    ranges = value_ranges(single, [name], iter(images))
    with torch.inference_mode():
        maps = [network.first(torch.from_numpy(x).permute(0, 3, 1, 2).float()) for x in images]
    expected = min(float(x.min()) for x in maps), max(float(x.max()) for x in maps)
    np.testing.assert_allclose(ranges[name], expected, rtol=1e-5)


def test_what_silu_makes_zero_of_costs_no_resolution() -> None:
    network = Pixels()
    assert network.second.bias is not None
    network.second.weight.data *= 20
    network.second.bias.data[::2] -= 500  # these channels are off
    single = pixels(network)
    reduced = quantize(single, random_images())
    scales = [value for name, value in constants(reduced).items() if name.endswith("rounded/scale")]
    activations = [value for value in scales if value.ndim == 0]
    assert activations
    assert max(map(float, activations)) < -SILU_ENDS / 100
    images = random_images()[0]
    expected = run(single, images)
    assert np.abs(run(reduced, images) - expected).max() < 0.03 * np.abs(expected).max()


class Rectified(Pixels):
    def forward(self, images: Tensor) -> Tensor:
        """ReLU in place of SiLU."""
        x = nn.functional.relu(self.first(images.permute(0, 3, 1, 2).float()))
        x = torch.cat(
            [nn.functional.relu(convolution(x)) for convolution in (self.second, self.third)], dim=1
        )
        y: Tensor = self.last(x)
        return y


def test_what_relu_makes_zero_of_costs_no_resolution() -> None:
    network = Rectified()
    for layer in (network.second, network.third):
        assert layer.bias is not None
        layer.bias.data[::2] -= 2000  # these channels are off
    single = pixels(network)
    assert 0 < loss(single) < 0.03


def test_a_channel_without_weights_keeps_its_bias() -> None:
    network = Pixels()
    assert network.second.bias is not None
    network.second.weight.data[:8] = 0
    network.second.weight.data[8:16] *= 1e-12
    network.second.bias.data[:16] = 3.0
    single = pixels(network)
    assert loss(single) < 0.03


def test_images_that_are_all_black_are_no_division_by_zero() -> None:
    network = Pixels()
    for layer in (network.first, network.second):
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)
    reduced = quantize(pixels(network), [np.zeros((1, 16, 16, 3), np.uint8)])
    assert np.isfinite(run(reduced, random_images()[0])).all()


class Attended(nn.Module):
    """Attention between two convolutions that are quantised."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.before, self.after = nn.Conv2d(32, 32, 1), nn.Conv2d(32, 32, 1)
        self.attention = attention
        self.last = nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 4, H, W)."""
        x = self.attention(nn.functional.silu(self.before(x)))
        y: Tensor = self.last(nn.functional.silu(self.after(x)))
        return y


@pytest.mark.parametrize("form", ["separate", "fused", "reduced", "p 8", "no encoding"])
def test_no_map_gives_nan_or_inf(form: str) -> None:
    module = Attended(ChannelFirstFLA(trained(**FORMS[form])))
    single = optimize(traced(module, torch.zeros(2, 32, 6, 6), "images"))
    batches = [x.astype(np.float32) for x in adversarial(np.random.default_rng(0))]
    for calibration in (batches[0][:1] * 1e-3, batches[3][:1]):
        reduced = session(quantize(single, [calibration]))  # type: ignore[list-item]  # no pixels
        for maps in batches:
            (y,) = reduced.run(None, {"images": maps})
            assert np.isfinite(y).all()


@pytest.mark.slow
def test_the_default_network_in_int8(repo_dir: Path, tmp_path: Path) -> None:
    single = graph_of(repo_dir / "weights" / "yolov8n-fla-bccd.pt")
    smears = [
        decode((repo_dir / "samples" / f"smear_{i}.jpg").read_bytes(), max_pixels=10**7)
        for i in (1, 2, 3)
    ]
    canvases = [np.ascontiguousarray(smear[:480, :640][None]) for smear in smears]
    reduced = quantize(single, canvases)
    assert {node.domain for node in reduced.graph.node} == {""}
    assert len(reduced.SerializeToString()) < 0.4 * len(single.SerializeToString())
    # All but the image's, the head's last six, and the attention's five.
    operators = optimised_operators(reduced, tmp_path / "o.onnx")
    assert operators.count("QLinearConv") == 56
    assert operators.count("Conv") == 12

    ours, theirs = run(reduced, canvases[0])[0], run(single, canvases[0])[0]
    best = theirs[theirs[:, 4] > 0.8]
    assert len(best) > 10
    for row in best:
        near = np.abs(ours[:, :4] - row[:4]).max(1) < 4
        assert np.abs(ours[near, 4] - row[4]).min(initial=1) < 0.1
