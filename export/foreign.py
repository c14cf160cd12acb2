"""Layers of published tutorials, taken over as ours.

People paste these classes into a copy of ultralytics, under any module path; a checkpoint names
them, and that copy is not here. So they are known by their class names, filled as empty layers,
and replaced by ours, which compute the same.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from export.errors import ModelUnsupported
from model.blocks import BottleneckFLA, C2fFLA
from model.focused_linear_attention import FocusedLinearAttention
from model.registration import in_place_of


class ForeignLayer(nn.Module):
    """A layer without its class: parameters, children and attributes, and no code.

    Attributes:
        foreign_name: the name of the class in the file.
    """

    foreign_name = ""


def take_over(model: nn.Module) -> None:
    """Replaces every foreign layer of a network, innermost first.

    Raises:
        ModelUnsupported: a layer has other parameters than the class of its name; the message
            lists them.
    """
    for name, child in list(model.named_children()):
        take_over(child)
        if isinstance(child, ForeignLayer):
            try:
                ours = TAKE_OVER[child.foreign_name](child)
            except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
                shapes = {key: tuple(value.shape) for key, value in child.state_dict().items()}
                said = " ".join(str(error).split())
                raise ModelUnsupported(
                    f"{child.foreign_name} is not the published layer ({said}); "
                    f"its parameters are {shapes}"
                ) from None
            setattr(model, name, in_place_of(child, ours) if hasattr(child, "f") else ours)


def attention(layer: Any) -> FocusedLinearAttention:
    """The attention itself, in either parameter form, with or without positional encoding.

    The tutorials' copies have no positional encoding, and sum the keys that the published
    modules average; a layer without one is taken for such a copy.
    """
    state = layer.state_dict()
    dim = state["proj.weight"].shape[0]
    encoding = state.get("positional_encoding")
    sr_ratio = int(getattr(layer, "sr_ratio", 1))
    tokens = None if encoding is None else encoding.shape[1] * sr_ratio**2
    projection = layer.qkv if "qkv.weight" in state else layer.q
    ours = FocusedLinearAttention(
        dim,
        tokens,
        num_heads=dim // state["dwc.weight"].shape[0],
        qkv_bias=projection.bias is not None,
        sr_ratio=sr_ratio,
        focusing_factor=layer.focusing_factor,
        kernel_size=state["dwc.weight"].shape[2],
        fused_qkv="qkv.weight" in state,
        summed_keys=encoding is None,
    )
    ours.load_state_dict(state)
    return ours


def bottleneck(layer: Any) -> BottleneckFLA:
    """A bottleneck whose attention, `FLA`, runs only where there is no shortcut."""
    c1, c2 = layer.cv1.conv.in_channels, layer.cv2.conv.out_channels
    ours = BottleneckFLA(c1, c2, shortcut=False, num_heads=1)
    ours.cv1, ours.cv2, ours.add = layer.cv1, layer.cv2, layer.add
    ours.attention = None if layer.add else layer.FLA
    return ours


def c2f(layer: Any) -> C2fFLA:
    """A C2f around such bottlenecks."""
    c1, c2 = layer.cv1.conv.in_channels, layer.cv2.conv.out_channels
    ours = C2fFLA(c1, c2, n=1, num_heads=1)
    ours.cv1, ours.cv2, ours.m, ours.c = layer.cv1, layer.cv2, layer.m, layer.c
    return ours


TAKE_OVER: Mapping[str, Callable[[Any], nn.Module]] = {
    "FocusedLinearAttention": attention,
    "FLAttention": attention,
    "Bottleneck_FLA": bottleneck,
    "C2f_FLA": c2f,
}
