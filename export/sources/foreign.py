"""Layers of published tutorials, taken over as ours.

People paste these classes into a copy of ultralytics, under any module path; a checkpoint names
them, and that copy is not here. So they are known by their class names, filled as empty layers,
and replaced by ours, which compute the same.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from export.errors import ModelUnsupported
from model.allow_list import ForeignLayer
from model.blocks import BottleneckFLA, C2fFLA
from model.focused_linear_attention import FocusedLinearAttention
from model.registration import in_place_of


def take_over(model: nn.Module, path: str = "") -> None:
    """Replaces every foreign layer of a network, innermost first.

    Args:
        model: the network, or a part of it; changed in place.
        path: where the part is in the network, for messages.

    Raises:
        ModelUnsupported: a layer has other parameters than the class of its name; the message
            lists them.
    """
    for name, child in list(model.named_children()):
        where = f"{path}.{name}" if path else name
        take_over(child, where)
        if isinstance(child, ForeignLayer):
            try:
                ours = TAKE_OVER[child.foreign_name](child)
            except Exception as error:  # parameters that nobody vouches for raise anything
                shapes = {key: tuple(value.shape) for key, value in child.state_dict().items()}
                said = f"no {error}" if isinstance(error, KeyError) else str(error)
                raise ModelUnsupported(
                    f"{where}: {child.foreign_name} is not the published layer "
                    f"({' '.join(said.split())[:200]}); its parameters are {shapes}"
                ) from None
            setattr(model, name, in_place_of(child, ours) if hasattr(child, "f") else ours)


def attention(layer: Any) -> FocusedLinearAttention:
    """The attention itself, in either parameter form, with or without positional encoding."""
    ours = attention_of(layer.state_dict(), layer.focusing_factor)
    for attribute in ("sr_ratio", "num_heads"):
        said, has = getattr(layer, attribute, None), getattr(ours, attribute)
        if said not in (None, has):
            raise ValueError(f"its {attribute} is {said}, its parameters are made for {has}")
    return ours


def attention_of(state: Mapping[str, Tensor], focusing_factor: float) -> FocusedLinearAttention:
    """The attention with these parameters; all but the focusing factor shows in their shapes.

    The tutorials' copies have no positional encoding, and sum the keys that the published
    modules average; parameters without one are taken for those of such a copy.

    Args:
        state: `proj`, `dwc`, `scale`, either `qkv` or `q` and `kv`, and what else there may be.
        focusing_factor: p.

    Raises:
        KeyError, ValueError, RuntimeError: it is not that layer's state.
    """
    dim, head_dim = state["proj.weight"].shape[0], state["dwc.weight"].shape[0]
    if dim % head_dim:
        raise ValueError(
            f"heads of {head_dim} channels, as dwc has, do not divide the {dim} of proj"
        )
    encoding = state.get("positional_encoding")
    sr_ratio = state["sr.weight"].shape[2] if "sr.weight" in state else 1
    tokens = None if encoding is None else encoding.shape[1] * sr_ratio**2
    if tokens is not None and math.isqrt(tokens) ** 2 != tokens:
        raise ValueError(f"its encoding is for {tokens} tokens, whose map does not show: no square")
    fused = "qkv.weight" in state
    ours = FocusedLinearAttention(
        dim,
        tokens,
        num_heads=dim // head_dim,
        qkv_bias=("qkv.bias" if fused else "q.bias") in state,
        sr_ratio=sr_ratio,
        focusing_factor=focusing_factor,
        kernel_size=state["dwc.weight"].shape[2],
        fused_qkv=fused,
        summed_keys=encoding is None,
    )
    ours.load_state_dict(state)
    return ours


def bottleneck(layer: Any) -> BottleneckFLA:
    """A bottleneck whose attention, mostly called `FLA`, runs only where there is no shortcut."""
    ours = BottleneckFLA(2, 2, shortcut=False, num_heads=1)  # all of it is replaced
    ours.cv1, ours.cv2, ours.add = layer.cv1, layer.cv2, layer.add
    attentions = [each for each in layer.children() if isinstance(each, FocusedLinearAttention)]
    if not layer.add and len(attentions) != 1:
        raise ValueError(f"it has {len(attentions)} attentions, not one")
    ours.attention = None if layer.add else attentions[0]
    return ours


def c2f(layer: Any) -> C2fFLA:
    """A C2f around such bottlenecks."""
    ours = C2fFLA(2, 2, n=1, num_heads=1)  # all of it is replaced
    ours.cv1, ours.cv2, ours.m, ours.c = layer.cv1, layer.cv2, layer.m, layer.c
    return ours


TAKE_OVER: Mapping[str, Callable[[Any], nn.Module]] = {
    "FocusedLinearAttention": attention,
    "FLAttention": attention,
    "Bottleneck_FLA": bottleneck,
    "C2f_FLA": c2f,
}
