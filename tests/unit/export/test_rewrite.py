from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from ultralytics.nn.tasks import DetectionModel

from export.attention.focused_linear import ChannelFirstFLA
from export.attention.operators import power
from export.optimize import FORBIDDEN_OPERATORS
from export.rewrite import rewrite
from model.attention.focused_linear import FocusedLinearAttention
from model.registration import architecture, register
from tests.support.networks import traced
from tests.unit.model.test_focused_linear_attention import GOLDEN, golden_case

FORMS: dict[str, dict[str, Any]] = {
    "separate": {},
    "fused": {"fused_qkv": True},
    "no bias": {"qkv_bias": False},
    "no encoding": {"num_patches": None},
    "summed keys": {"summed_keys": True},
    "reduced": {"sr_ratio": 2},
    "reduced by 3": {"sr_ratio": 3},
    "one head": {"num_heads": 1},
    "p 1": {"focusing_factor": 1},
    "p 8": {"focusing_factor": 8},
    "p 2.5": {"focusing_factor": 2.5},
    "kernel 3": {"kernel_size": 3},
}


def trained(**overrides: Any) -> FocusedLinearAttention:
    """A module with every parameter away from its initial value, in float64."""
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"num_patches": (6, 6), "num_heads": 4, "qkv_bias": True}
    arguments |= overrides
    attention = FocusedLinearAttention(32, **arguments).double().eval()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return attention


def close(ours: torch.Tensor, reference: torch.Tensor) -> bool:
    return float((ours - reference).abs().max()) <= 1e-5 * float(reference.abs().max())


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("map_hw", [(6, 6), (9, 6), (5, 13)], ids=str)
def test_the_exported_form_equals_the_module(form: str, map_hw: tuple[int, int]) -> None:
    attention = trained(**FORMS[form])
    x = torch.randn(2, 32, *map_hw, dtype=torch.float64)
    with torch.inference_mode():
        assert close(ChannelFirstFLA(attention)(x.float()), attention(x))


@pytest.mark.parametrize("name", GOLDEN)
def test_the_exported_form_equals_the_published_modules(shared_dir: Path, name: str) -> None:
    path = shared_dir / "golden" / "fla" / f"{name}.npz"
    attention, x, expected = golden_case(path, torch.float64)
    with torch.inference_mode():
        assert close(ChannelFirstFLA(attention)(x.float()), expected)


@pytest.mark.parametrize("which", ["q", "k", "both"])
def test_tokens_that_are_all_negative_come_out_as_the_module_says(which: str) -> None:
    attention = trained(num_patches=None)
    if which in ("q", "both"):
        torch.nn.init.constant_(attention.q.bias, -50)
    if which in ("k", "both"):
        torch.nn.init.constant_(attention.kv.bias[:32], -50)
    x = torch.randn(1, 32, 6, 6, dtype=torch.float64)
    with torch.inference_mode():
        assert close(ChannelFirstFLA(attention)(x.float()), attention(x))


@pytest.mark.parametrize("size", [1e-3, 1e3, 1e6])
def test_activations_of_any_size_come_out_as_the_module_says(size: float) -> None:
    attention = trained()
    x = torch.randn(1, 32, 6, 6, dtype=torch.float64) * size
    with torch.inference_mode():
        assert close(ChannelFirstFLA(attention)(x.float()), attention(x))


@pytest.mark.parametrize("focusing_factor", [8, 16, 32, 24.5])
@pytest.mark.parametrize("content", ["random", "alike", "one channel"])
def test_large_focusing_factors_neither_overflow_nor_vanish(
    focusing_factor: float, content: str
) -> None:
    torch.manual_seed(0)
    attention = FocusedLinearAttention(256, num_heads=8, focusing_factor=focusing_factor)
    attention = attention.double().eval()
    if content != "random":  # queries, keys and values are the input
        for layer in (attention.q, attention.proj):
            torch.nn.init.eye_(layer.weight)
        attention.kv.weight.data = torch.eye(256, dtype=torch.float64).repeat(2, 1)
    x = torch.rand(1, 256, 3, 4, dtype=torch.float64)
    if content != "random":
        x[:, 0 if content == "alike" else 1 :] = float(content == "alike")
    with torch.inference_mode():
        assert close(ChannelFirstFLA(attention)(x.float()), attention(x))


@pytest.mark.parametrize("form", ["separate", "fused", "reduced", "p 2.5"])
def test_onnx_runtime_gives_what_the_module_gives(form: str) -> None:
    attention = trained(**FORMS[form])
    model = traced(ChannelFirstFLA(attention), torch.zeros(2, 32, 6, 6))
    graph = model.graph
    operators = [node.op_type for node in graph.node]
    assert not FORBIDDEN_OPERATORS & set(operators)
    groups = [a.i for node in graph.node for a in node.attribute if a.name == "group"]
    assert groups.count(32) == 1  # one depthwise convolution for all heads

    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for shape in [(1, 32, 6, 6), (3, 32, 4, 9)]:
        x = torch.randn(shape, dtype=torch.float64)
        (y,) = session.run(None, {"x": x.float().numpy()})
        with torch.inference_mode():
            assert close(torch.from_numpy(np.asarray(y)), attention(x))


@pytest.mark.parametrize("exponent", [1, 2, 3, 4, 5, 8, 0.5, 2.5])
def test_power_is_the_power(exponent: float) -> None:
    w = torch.rand(100, dtype=torch.float64) + 1e-3
    torch.testing.assert_close(power(w, exponent), w**exponent)


@pytest.mark.parametrize("name", ["yolov8n-fla", "yolov8n-c2f-fla"])
def test_a_rewritten_network_answers_as_before_and_the_original_is_untouched(name: str) -> None:
    register()
    torch.manual_seed(0)
    network = DetectionModel(architecture(name), nc=3, verbose=False).eval()
    for module in network.modules():
        if isinstance(module, FocusedLinearAttention):
            torch.nn.init.normal_(module.proj.weight, std=0.1)  # it starts as zeros
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.8, 1.2)
    x = torch.rand(2, 3, 96, 64)
    with torch.inference_mode():
        before = network(x)[0]
        after = rewrite(network)(x)[0]
        torch.testing.assert_close(network(x)[0], before, rtol=0, atol=0)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    assert not any(isinstance(m, FocusedLinearAttention) for m in rewrite(network).modules())
