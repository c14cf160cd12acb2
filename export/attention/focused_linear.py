"""Focused linear attention: the form in an artifact, and how a tutorial's copy is recognised.

The export form has an equality test against the module that it replaces.
"""

import math
import re
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from ultralytics.nn.modules import C2f

from export.attention.mechanism import Mechanism, Shapes, State, TutorialRow
from export.attention.operators import constant, pointwise, power
from model.attention.focused_linear import EPSILON, BottleneckFLA, C2fFLA, FocusedLinearAttention

MAX_DECADES = 30  # float32 reaches 38 below 1
FOCUSING_FACTOR = 3.0  # of every published table; it does not show in the parameters


class ChannelFirstFLA(nn.Module):
    """`FocusedLinearAttention` without permutations, `Pow` or divisions over the whole map.

    Everything stays (B, C, N). What changes against the module, and why it is the same:

    - The linear layers are 1x1 convolutions.
    - 1 / softplus(scale) is folded into the q and k projections and the positional encoding:
      ReLU commutes with a positive factor. What is left of it is one small constant a channel.
    - u is divided by its norm before the power, which the focusing map does not see (it is
      homogeneous), so that no power underflows or overflows; by its largest channel, which takes
      longer, where p and C are so large that even the power of a norm does.
    - For queries the factor ‖u‖/‖u^p‖ of a token cancels between numerator and denominator, so
      only the epsilon in z is divided by it. It must be: for a token whose pre-activations are
      all negative that epsilon decides the result.
    - Sums over channels are products with a row of ones, which run as matrix products.
    - The depthwise convolution is one grouped convolution over all heads.

    Args:
        attention: the trained module.
    """

    def __init__(self, attention: FocusedLinearAttention) -> None:
        super().__init__()
        dim, heads = attention.dim, attention.num_heads
        self.dim, self.num_heads, self.head_dim = dim, heads, attention.head_dim
        self.focusing_factor = attention.focusing_factor
        self.sr_ratio = attention.sr_ratio
        self.summed_keys = attention.summed_keys
        weight, bias = projections(attention)  # (3·C, C), (3·C,) in float64
        inverse = 1 / F.softplus(attention.scale.detach().double()).reshape(dim)

        self.q = pointwise(weight[:dim] * inverse[:, None], bias[:dim] * inverse)
        self.v = pointwise(weight[2 * dim :], bias[2 * dim :])
        k_weight = weight[dim : 2 * dim] * inverse[:, None]
        k_bias = bias[dim : 2 * dim] * inverse
        self.k = pointwise(k_weight, k_bias)
        self.encoding: nn.Parameter | None = None
        if attention.positional_encoding is not None:
            assert attention.encoded_hw is not None
            encoding = attention.positional_encoding.detach().double()[0].T * inverse[:, None]
            self.encoding = constant(encoding.reshape(1, dim, *attention.encoded_hw))
        self.epsilon = constant((EPSILON * inverse).reshape(1, dim, 1))
        self.ones = constant(torch.ones(1, 1, dim))

        if self.sr_ratio > 1:
            self.sr = deepcopy(attention.sr).float()
            self.norm = deepcopy(attention.norm).float()
        kernel = attention.kernel_size
        self.dwc = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        assert attention.dwc.bias is not None
        self.dwc.weight = constant(attention.dwc.weight.repeat(heads, 1, 1, 1))
        self.dwc.bias = constant(attention.dwc.bias.repeat(heads))
        self.proj = pointwise(attention.proj.weight.double(), attention.proj.bias.double())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) float32 to the same shape."""
        batch, _, height, width = x.shape
        reduced = self.reduce(x)  # (B, C, H', W')
        q, k, v = self.q(x), self.k(reduced), self.v(reduced)
        if self.encoding is not None:
            k = k + self.encoding_at(k)

        by_head = (batch, self.num_heads, self.head_dim, -1)
        q, q_norm, q_powered_norm = self.normalised_power(q)
        k, k_norm, k_powered_norm = self.normalised_power(k)
        k = (k * (k_norm / k_powered_norm)).reshape(by_head)
        q = q.reshape(by_head)
        epsilon = (EPSILON * q_powered_norm / q_norm)[:, None]  # (B, 1, 1, N)

        n = k.shape[3]
        if self.summed_keys:
            epsilon = epsilon / n
        vk = v.reshape(by_head) @ k.transpose(2, 3) / n  # (B, h, d, d)
        numerator = vk @ q  # (B, h, d, N)
        denominator = k.mean(3, keepdim=True).transpose(2, 3) @ q + epsilon  # (B, h, 1, N)
        o = (numerator * denominator.reciprocal()).reshape(batch, self.dim, height, width)
        y: Tensor = self.proj(o + self.dwc(self.stretch(v, x)))
        return y

    def normalised_power(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """w^p, ‖u‖ and ‖w^p‖ for u = ReLU(t) + epsilon and w = u / ‖u‖ or u / max u.

        Returns:
            (B, C, N) and twice (B, 1, N); f_p(u) is the first times the second by the third.
        """
        u = F.relu(t).flatten(2) + self.epsilon
        norm = (self.ones @ (u * u)).sqrt()
        # All channels alike, divided by the norm: w^p is C^(-p/2), and its square is summed.
        norm_serves = self.focusing_factor * math.log10(self.dim) < MAX_DECADES
        divisor = norm if norm_serves else u.amax(1, keepdim=True)
        powered = power(u * divisor.reciprocal(), self.focusing_factor)
        return powered, norm, (self.ones @ (powered * powered)).sqrt()

    def reduce(self, x: Tensor) -> Tensor:
        """The map that keys and values are taken from."""
        if self.sr_ratio == 1:
            return x
        normed: Tensor = self.norm(self.sr(x).permute(0, 2, 3, 1))
        return normed.permute(0, 3, 1, 2)

    def encoding_at(self, k: Tensor) -> Tensor:
        """The positional encoding at the size of the map of keys."""
        assert self.encoding is not None
        return F.interpolate(self.encoding, size=k.shape[2:], mode="bilinear", align_corners=False)

    def stretch(self, v: Tensor, x: Tensor) -> Tensor:
        """Reduced values at the size of `x`, interpolated along the line of tokens."""
        if self.sr_ratio == 1:
            return v
        tokens = x.shape[2] * x.shape[3]
        # A line is a map of height 1: ONNX has the linear mode for maps.
        v = F.interpolate(v.flatten(2)[:, :, None], (1, tokens), mode="bilinear")
        return v.reshape(x.shape)


def projections(attention: FocusedLinearAttention) -> tuple[Tensor, Tensor]:
    """Weights (3·C, C) and biases (3·C,) of q, k and v in float64, for either parameter form."""
    layers = [attention.qkv] if attention.fused_qkv else [attention.q, attention.kv]
    weight = torch.cat([layer.weight.detach().double() for layer in layers])
    biases = [
        torch.zeros(layer.out_features, dtype=torch.float64)
        if layer.bias is None
        else layer.bias.detach().double()
        for layer in layers
    ]
    return weight, torch.cat(biases)


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
    attentions = [child for child in layer.children() if isinstance(child, FocusedLinearAttention)]
    if not layer.add and len(attentions) != 1:
        raise ValueError(f"it has {len(attentions)} attentions, not one")
    ours.attention = None if layer.add else attentions[0]
    return ours


def c2f(layer: Any) -> C2fFLA:
    """A C2f around such bottlenecks."""
    ours = C2fFLA(2, 2, n=1, num_heads=1)  # all of it is replaced
    ours.cv1, ours.cv2, ours.m, ours.c = layer.cv1, layer.cv2, layer.m, layer.c
    return ours


def attention_row(_: nn.Module, state: State) -> tuple[FocusedLinearAttention, State]:
    """The attention of a row; its channels are those that it is given."""
    return attention_of(state, FOCUSING_FACTOR), state


def c2f_row(stand_in: C2f, state: State) -> tuple[C2fFLA, State]:
    """Ours for a tutorial's C2f, and its state under our names.

    Args:
        stand_in: a C2f of the same channels, depth and shortcuts; used up.
        state: of the tutorial's layer.
    """
    renamed = dict(state)
    for number, plain in enumerate(stand_in.m):
        child = attention_child(state, f"m.{number}.")
        of_attention = {
            key.removeprefix(child): value for key, value in state.items() if key.startswith(child)
        }
        for key, value in of_attention.items():
            del renamed[f"{child}{key}"]
            if not plain.add:  # beside a shortcut it is in the file, and never run
                renamed[f"m.{number}.attention.{key}"] = value
        if not plain.add:
            plain.FLA = attention_of(of_attention, FOCUSING_FACTOR)
        stand_in.m[number] = bottleneck(plain)
    return c2f(stand_in), renamed


def attention_child(state: State, bottleneck: str) -> str:
    """What stands before the parameters of a bottleneck's attention, mostly called `FLA`."""
    found = re.compile(rf"({re.escape(bottleneck)}[^.]+\.)dwc\.weight").fullmatch
    return next((match[1] for match in map(found, state) if match), f"{bottleneck}FLA.")


def recognise(shapes: Shapes) -> bool:
    """Whether these are the parameters of the attention, in either form."""
    projections = "qkv.weight" in shapes or {"q.weight", "kv.weight"} <= shapes.keys()
    return projections and {"proj.weight", "dwc.weight", "scale"} <= shapes.keys()


MECHANISM = Mechanism(
    module=FocusedLinearAttention,
    export_form=ChannelFirstFLA,
    tutorial_layers={
        "FocusedLinearAttention": attention,
        "FLAttention": attention,
        "Bottleneck_FLA": bottleneck,
        "C2f_FLA": c2f,
    },
    tutorial_rows={
        "FocusedLinearAttention": TutorialRow("nn.Identity", attention_row),
        "FLAttention": TutorialRow("nn.Identity", attention_row),
        "C2f_FLA": TutorialRow("C2f", c2f_row),
    },
    recognise=recognise,
    attention="FocusedLinearAttention",
    bottleneck="Bottleneck_FLA",
    c2f="C2f_FLA",
)
