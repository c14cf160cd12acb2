"""Focused Linear Attention, in the symbols of the paper.

Source: Han et al., "FLatten Transformer: Vision Transformer using Focused Linear Attention",
ICCV 2023, arXiv 2308.00442, equations 3 to 6. Parameter names and shapes are those of the
published modules, so a state dict of either form (separate `q`/`kv`, or fused `qkv`) loads.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPSILON = 1e-6  # of the published code: keeps an all-negative token away from 0/0


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
