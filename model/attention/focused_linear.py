"""Focused Linear Attention, in the symbols of the paper.

Source: Han et al., "FLatten Transformer: Vision Transformer using Focused Linear Attention",
ICCV 2023, arXiv 2308.00442, equations 3 to 6. Parameter names and shapes are those of the
published modules, so a state dict of either form (separate `q`/`kv`, or fused `qkv`) loads.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from ultralytics.nn.modules import C2f, Conv
from ultralytics.nn.modules.block import Bottleneck

from model.attention.mechanism import Mechanism, Row

EPSILON = 1e-6  # of the published code: keeps an all-negative token away from 0/0
MIXED_IN = 1 / 16  # share of the attention in what a new C2fFLA passes on


def focus(t: Tensor, focusing_factor: float) -> Tensor:
    """The focusing map f_p: keeps a token's norm, turns it towards its largest channels.

    Args:
        t: (..., C) float, > 0.
        focusing_factor: p > 0; 1 is the identity.

    Returns:
        (..., C), ‖t‖ / ‖t^p‖ · t^p with both norms over C.

    Source: equation 5.
    """
    # The direction of t^p does not depend on the size of t; divided by the largest channel, no
    # power underflows to 0/0 (an all-negative token has 1e-6 everywhere) or overflows.
    powered = (t / t.amax(dim=-1, keepdim=True)).pow(focusing_factor)
    focused: Tensor = powered * (t.norm(dim=-1, keepdim=True) / powered.norm(dim=-1, keepdim=True))
    return focused


class FocusedLinearAttention(nn.Module):
    """Attention over all positions of a feature map, at a cost linear in their number.

    Args:
        dim: channels C of the map; a multiple of `num_heads`.
        num_patches: the map size that the positional encoding belongs to, as (height, width) or,
            for a square map, as the number of tokens; None means no positional encoding. With
            `sr_ratio` > 1 it is still the size of the unreduced map.
        num_heads: h; each head has C / h channels.
        qkv_bias: bias of the q, k and v projections.
        qk_scale: accepted because the published constructors have it; without effect here as
            there: the learned `scale` takes its place.
        attn_drop: accepted for the same reason and as ineffective: no attention matrix is formed
            that entries could be dropped from.
        proj_drop: dropout probability after the output projection, 0..1.
        sr_ratio: keys and values are taken from a map reduced by this factor, >= 1.
        focusing_factor: p > 0.
        kernel_size: of the depthwise convolution; odd.
        fused_qkv: one `qkv` projection instead of `q` and `kv` (the form published for Swin);
            needs `sr_ratio` 1.
        summed_keys: the epsilon in z stands beside the sum of the focused keys and not beside
            their mean, as in the tutorials' copies of the module.

    Raises:
        ValueError: when a value is outside what is said above; the message names it.
    """

    summed_keys = False  # of modules that were pickled before there was a choice

    def __init__(
        self,
        dim: int,
        num_patches: int | tuple[int, int] | None = None,
        num_heads: int = 8,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        sr_ratio: int = 1,
        focusing_factor: float = 3,
        kernel_size: int = 5,
        *,
        fused_qkv: bool = False,
        summed_keys: bool = False,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not a multiple of num_heads {num_heads}")
        if sr_ratio < 1:
            raise ValueError(f"sr_ratio {sr_ratio} is below 1")
        if fused_qkv and sr_ratio > 1:
            raise ValueError(f"fused_qkv needs sr_ratio 1, not {sr_ratio}")
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size {kernel_size} is even: the map would change its size")
        if not 0 < focusing_factor < float("inf"):
            raise ValueError(f"focusing_factor {focusing_factor} is not a number above 0")
        self.dim = dim
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.sr_ratio = sr_ratio
        self.focusing_factor = focusing_factor
        self.kernel_size = kernel_size
        self.fused_qkv = fused_qkv
        self.summed_keys = summed_keys

        if fused_qkv:
            self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        else:
            self.q = nn.Linear(dim, dim, bias=qkv_bias)
            self.kv = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        if sr_ratio > 1:
            self.sr = nn.Conv2d(dim, dim, kernel_size=sr_ratio, stride=sr_ratio)
            self.norm = nn.LayerNorm(dim)
        self.dwc = nn.Conv2d(
            self.head_dim,
            self.head_dim,
            kernel_size,
            padding=kernel_size // 2,
            groups=self.head_dim,
        )
        self.scale = nn.Parameter(torch.zeros(1, 1, dim))

        self.encoded_hw: tuple[int, int] | None = None  # the map of keys that the encoding fits
        self.positional_encoding: nn.Parameter | None = None
        if num_patches is not None:
            height, width = map_size(num_patches)
            self.encoded_hw = height // sr_ratio, width // sr_ratio
            tokens = self.encoded_hw[0] * self.encoded_hw[1]
            self.positional_encoding = nn.Parameter(torch.zeros(1, tokens, dim))
            nn.init.trunc_normal_(self.positional_encoding, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Attends over the map.

        Args:
            x: (B, C, H, W) float; H, W >= `sr_ratio`, not necessarily square nor the size that
                the positional encoding was made for.

        Returns:
            (B, C, H, W), the type of `x`.
        """
        batch, channels, height, width = x.shape
        tokens = x.flatten(2).transpose(1, 2)  # (B, N, C)
        q, k, v, key_hw = self.project(tokens, (height, width))  # (B, N, C), 2 x (B, n, C)
        if self.positional_encoding is not None:
            k = k + self.positional_encoding_at(key_hw)

        v = self.split_heads(v)  # (B, h, n, d)
        # Half precision, of the weights or by autocast, has neither 1e-6 cubed nor its inverse.
        with torch.autocast(x.device.type, enabled=False):
            o = self.attend(self.phi(q), self.phi(k), v)  # (B, h, N, d)

        v_map = self.values_as_map(v, (height, width))  # (B·h, d, H, W)
        o = o.transpose(2, 3).reshape(batch, channels, height, width).to(x.dtype)
        o = o + self.dwc(v_map).reshape(x.shape)
        y: Tensor = self.proj_drop(self.proj(o.flatten(2).transpose(1, 2)))
        return y.transpose(1, 2).reshape(x.shape)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The attention of every head, equation 4.

        Args:
            q: focused, (B, N, C).
            k: focused, (B, n, C).
            v: (B, h, n, d).

        Returns:
            (B, h, N, d), the type of `q`.
        """
        q, k, v = self.split_heads(q), self.split_heads(k), v.to(k.dtype)
        n = k.shape[2]
        epsilon = EPSILON / n if self.summed_keys else EPSILON
        z = 1 / (q @ k.mean(dim=2, keepdim=True).transpose(2, 3) + epsilon)  # (B, h, N, 1)
        kv = (k.transpose(2, 3) * n**-0.5) @ (v * n**-0.5)  # (B, h, d, d)
        o: Tensor = q @ kv * z
        return o

    def project(
        self, tokens: Tensor, map_hw: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
        """q (B, N, C), k and v (B, n, C), and the (height, width) of the map of keys."""
        if self.fused_qkv:
            q, k, v = self.qkv(tokens).chunk(3, dim=-1)
            return q, k, v, map_hw
        reduced = tokens
        if self.sr_ratio > 1:
            as_map = tokens.transpose(1, 2).reshape(tokens.shape[0], self.dim, *map_hw)
            as_map = self.sr(as_map)  # (B, C, H/sr, W/sr)
            map_hw = as_map.shape[2], as_map.shape[3]
            reduced = self.norm(as_map.flatten(2).transpose(1, 2))
        k, v = self.kv(reduced).chunk(2, dim=-1)
        return self.q(tokens), k, v, map_hw

    def phi(self, t: Tensor) -> Tensor:
        """The focused feature map φ of (B, N, C) queries or keys, at least in float32."""
        t = t.to(torch.promote_types(t.dtype, torch.float32))
        return focus((F.relu(t) + EPSILON) / F.softplus(self.scale), self.focusing_factor)

    def positional_encoding_at(self, key_hw: tuple[int, int]) -> Tensor:
        """The encoding (1, n, C) for a map of keys of this (height, width).

        At a size other than its own it is interpolated in two dimensions, bilinear, with
        half-pixel centres, because the n tokens are the rows of a map and not a line.
        """
        assert self.positional_encoding is not None
        assert self.encoded_hw is not None
        if key_hw == self.encoded_hw:
            return self.positional_encoding
        as_map = self.positional_encoding.transpose(1, 2).reshape(1, self.dim, *self.encoded_hw)
        as_map = F.interpolate(as_map, size=key_hw, mode="bilinear", align_corners=False)
        return as_map.flatten(2).transpose(1, 2)

    def split_heads(self, t: Tensor) -> Tensor:
        """(B, N, C) to (B, h, N, d)."""
        return t.reshape(t.shape[0], t.shape[1], self.num_heads, self.head_dim).transpose(1, 2)

    def values_as_map(self, v: Tensor, map_hw: tuple[int, int]) -> Tensor:
        """Values (B, h, n, d) as one map (B·h, d, H, W) a head, for the depthwise convolution.

        Reduced values (n < N) are stretched along the line of tokens, not over the map, as in
        the published code: weights trained with it expect that.
        """
        v = v.transpose(2, 3).flatten(0, 1)  # (B·h, d, n)
        tokens = map_hw[0] * map_hw[1]
        if self.sr_ratio > 1:
            v = F.interpolate(v, size=tokens, mode="linear", align_corners=False)
        return v.reshape(v.shape[0], self.head_dim, *map_hw)


def map_size(num_patches: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the map with this many tokens.

    Raises:
        ValueError: when a bare number is not a square; only (height, width) tells then.
    """
    if not isinstance(num_patches, int):
        height, width = num_patches
        return height, width
    side = math.isqrt(num_patches)
    if side * side != num_patches:
        raise ValueError(f"num_patches {num_patches} is not a square: give (height, width)")
    return side, side


class FLABlock(nn.Module):
    """A residual layer: x + attention(x). Keeps the shape of its input.

    Its output projection starts at zero, so a new block is the identity: a trained network that
    gets one inserted computes what it did before.

    Args:
        dim: channels C, a multiple of `num_heads`.
        map_side: side of the square map that the positional encoding is made for, in cells; it
            is interpolated at every other size.
        num_heads: heads of the attention.
    """

    def __init__(self, dim: int, map_side: int = 20, num_heads: int = 8) -> None:
        super().__init__()
        self.attention = FocusedLinearAttention(
            dim, (map_side, map_side), num_heads=num_heads, qkv_bias=True
        )
        nn.init.zeros_(self.attention.proj.weight)
        nn.init.zeros_(self.attention.proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) float to the same shape."""
        y: Tensor = x + self.attention(x)
        return y


class BottleneckFLA(Bottleneck):  # type: ignore[misc]  # ultralytics has no type information
    """YOLOv8's bottleneck, with attention behind its convolutions where it has no shortcut.

    Source: the `Bottleneck_FLA` of the published tutorials, which has no positional encoding and
    leaves the bottlenecks with a shortcut as they are.
    """

    def __init__(
        self, c1: int, c2: int, shortcut: bool = True, num_heads: int = 8, e: float = 0.5
    ) -> None:
        super().__init__(c1, c2, shortcut, 1, (3, 3), e)
        self.attention = None if self.add else FocusedLinearAttention(c2, num_heads=num_heads)

    def forward(self, x: Tensor) -> Tensor:
        """(B, c1, H, W) float to (B, c2, H, W)."""
        y: Tensor = self.cv2(self.cv1(x))
        if self.attention is None:
            return x + y
        attended: Tensor = self.attention(y)
        return attended


class C2fFLA(C2f):  # type: ignore[misc]  # ultralytics has no type information
    """YOLOv8's C2f with `BottleneckFLA` inside.

    Args:
        c1: input channels.
        c2: output channels; half of them, a multiple of `num_heads`, pass through attention.
        n: number of bottlenecks.
        shortcut: whether the bottlenecks add their input; then there is no attention in them.
        num_heads: heads of the attention.
    """

    def __init__(
        self, c1: int, c2: int, n: int = 1, shortcut: bool = False, num_heads: int = 8
    ) -> None:
        super().__init__(c1, c2, n, shortcut)
        self.m = nn.ModuleList(
            BottleneckFLA(self.c, self.c, shortcut, num_heads, e=1.0) for _ in range(n)
        )


def fla_block(stand_in: Conv, args: list[Any]) -> FLABlock:
    """The block for a 1x1 convolution with its channels; args: channels, map side, heads."""
    convolution = stand_in.conv
    if convolution.in_channels != convolution.out_channels:
        raise ValueError(
            f"FLABlock keeps its channels: it gets {convolution.in_channels}, "
            f"its row says {convolution.out_channels}"
        )
    return FLABlock(convolution.out_channels, *args[1:])


def c2f_fla(stand_in: C2f, args: list[Any]) -> C2fFLA:
    """The block for a C2f with its channels and depth; args: channels, shortcut, heads."""
    channels = stand_in.cv1.conv.in_channels, stand_in.cv2.conv.out_channels
    return C2fFLA(*channels, len(stand_in.m), *args[1:])


def start(layer: nn.Module, attentions: Sequence[FocusedLinearAttention]) -> str:
    """Sets new attentions of a layer so that it begins as an identity, or nearly; says which."""
    if isinstance(layer, FLABlock):  # which is made so
        return "identity"
    if not isinstance(layer, C2fFLA):
        return ""
    for attention in attentions:
        start_near_identity(attention)
    return f"near identity: {MIXED_IN:.0%} attention"


@torch.no_grad()
def start_near_identity(attention: FocusedLinearAttention) -> None:
    """Sets weights so that y = x + MIXED_IN · (the mean of x that the attention weighs).

    The tutorials' C2f has no residual around its attention: y = proj(o + DWC(v)). Its o is a mean
    over the map with weights that sum to 1, of the same v that goes through the convolution, so
    no weights make it vanish beside an exact identity, short of queries or keys too small to
    learn. But the convolution can amplify v: with v = r x, a kernel of 1/r² at its centre, and
    proj = r, the share of o is r². All factors are powers of two, so nothing is rounded.

    Args:
        attention: without `sr_ratio`; its q and k stay as they were drawn, so it can learn.
    """
    r = MIXED_IN**0.5
    identity = torch.eye(attention.dim)
    projection = attention.qkv if attention.fused_qkv else attention.kv
    projection.weight[-attention.dim :] = r * identity
    if projection.bias is not None:
        projection.bias[-attention.dim :] = 0
    centre = attention.kernel_size // 2
    attention.dwc.weight.zero_()
    attention.dwc.weight[:, :, centre, centre] = 1 / r**2
    nn.init.zeros_(attention.dwc.bias)  # type: ignore[arg-type]  # the module always has one
    attention.proj.weight.copy_(r * identity)
    nn.init.zeros_(attention.proj.bias)


MECHANISM = Mechanism(
    module=FocusedLinearAttention,
    layers=(FocusedLinearAttention, FLABlock, BottleneckFLA, C2fFLA),
    former_modules=("model.focused_linear_attention", "model.blocks"),
    tutorial_names=("FocusedLinearAttention", "FLAttention", "Bottleneck_FLA", "C2f_FLA"),
    rows={
        "FLABlock": Row(lambda args: ("Conv", [args[0], 1, 1]), fla_block, repeatable=False),
        "C2fFLA": Row(lambda args: ("C2f", args[:2]), c2f_fla, repeatable=True),
    },
    start=start,
)
