import onnx
import pytest
import torch
from torch import Tensor, nn

from export.attention.focused_linear import ChannelFirstFLA
from export.precision.graph import key
from export.precision.regions import find_regions
from tests.support.hard_maps import CHANNELS
from tests.unit.export.test_half import Block, Residual, traced
from tests.unit.export.test_rewrite import FORMS, trained


def operators(model: onnx.ModelProto, keys: frozenset[str]) -> list[str]:
    return sorted(node.op_type for node in model.graph.node if key(node) in keys)


@pytest.mark.parametrize("form", ["separate", "fused", "no encoding", "reduced", "p 2.5"])
@pytest.mark.parametrize("residual", [True, False])
def test_an_attention_is_found_with_its_convolutions_and_its_sum(form: str, residual: bool) -> None:
    layer: nn.Module = ChannelFirstFLA(trained(**FORMS[form]))
    model = traced(Block(Residual(layer) if residual else layer))
    regions = find_regions(model)
    assert operators(model, regions.convolutions) == ["Conv"] * 2  # before and after
    assert operators(model, regions.between) == ["Concat"]  # of the block's two outputs
    # q, k, v, dwc, proj, and the reduction; nothing of the layer is left out, where reduced values
    # are stretched neither, though that alone would be plain.
    found = operators(model, regions.attention)
    assert found.count("Conv") == (6 if form == "reduced" else 5)
    inner = [node for node in model.graph.node if "/layer/" in node.name]
    integers = {"Shape", "Gather", "Unsqueeze", "Slice", "Concat", "Cast", "Mul", "Div", "Reshape"}
    assert {node.op_type for node in inner if key(node) not in regions.attention} <= integers
    assert not regions.decoding


class Head(nn.Module):
    """Distributions over bins, their expectation written as a convolution, as in ultralytics."""

    def __init__(self) -> None:
        super().__init__()
        self.boxes = nn.Conv2d(CHANNELS, 4 * 16, 1)
        self.expectation = nn.Conv2d(16, 1, 1, bias=False)
        self.expectation.weight.data = torch.arange(16.0).reshape(1, 16, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, 4, H·W) distances in pixels."""
        y = self.boxes(x).flatten(2)
        y = y.reshape(y.shape[0], 4, 16, -1).transpose(2, 1).softmax(1)
        z: Tensor = self.expectation(y)[:, 0] * 8
        return z


def test_an_expectation_that_is_written_as_a_convolution_belongs_to_the_decoding() -> None:
    model = traced(Head())
    regions = find_regions(model)
    assert operators(model, regions.convolutions) == ["Conv"]
    assert "Conv" in operators(model, regions.decoding)
    assert "Softmax" in operators(model, regions.decoding)
    assert set(operators(model, regions.moves)) <= {"Reshape", "Transpose"}
    assert operators(model, regions.moves)
    assert not regions.attention


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """A bottleneck with a shortcut."""
        x = nn.functional.silu(self.a(x))
        y: Tensor = self.a(x + nn.functional.silu(self.b(x)))
        return y


def test_a_network_without_attention_has_none() -> None:
    model = traced(Plain())
    regions = find_regions(model)
    assert operators(model, regions.convolutions) == ["Conv"] * 3
    assert operators(model, regions.between) == ["Add", "Mul", "Mul", "Sigmoid", "Sigmoid"]
    assert not regions.attention | regions.decoding | regions.moves
