"""The same network in operators that ONNX Runtime runs fast, trained weights folded in.

Each function here changes the form and not the outputs (to float32 rounding); each has an
equality test against the module that it replaces.
"""

import math
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from ultralytics.nn.tasks import DetectionModel

from model.focused_linear_attention import EPSILON, FocusedLinearAttention
from model.registration import in_place_of

MAX_DECADES = 30  # float32 reaches 38 below 1


def rewrite(model: DetectionModel) -> DetectionModel:
    """A float32 copy for inference: attention rewritten, batch norms fused into convolutions.

    Args:
        model: a trained detector; it is not changed.
    """
    model = deepcopy(model).float().eval()
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, FocusedLinearAttention):
                ours: nn.Module = ChannelFirstFLA(child)
                # Some networks have the attention as a layer of its own.
                is_layer = hasattr(child, "f")
                setattr(parent, name, in_place_of(child, ours) if is_layer else ours)
    return model.fuse(verbose=False)


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


def pointwise(weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """A 1x1 convolution in float32 with this (out, in) weight and (out,) bias."""
    convolution = nn.Conv2d(weight.shape[1], weight.shape[0], 1)
    convolution.weight = constant(weight[:, :, None, None])
    convolution.bias = constant(bias)
    return convolution


def constant(value: Tensor) -> nn.Parameter:
    """A float32 parameter that is not trained."""
    return nn.Parameter(value.detach().float(), requires_grad=False)


def power(w: Tensor, exponent: float) -> Tensor:
    """w ** exponent for w > 0 without ONNX `Pow`, which is slow and not everywhere on a GPU."""
    if exponent != int(exponent):
        return torch.exp(exponent * torch.log(w))
    result, square, remaining = None, w, int(exponent)
    while remaining:  # by squaring
        if remaining & 1:
            result = square if result is None else result * square
        remaining >>= 1
        if remaining:
            square = square * square
    assert result is not None
    return result


def fold_input_scaling(convolution: nn.Conv2d, factor: float) -> None:
    """Makes a convolution without padding bias expect inputs `factor` times as large.

    Zero padding is zero at either scale, so only the weight changes.
    """
    convolution.weight.data /= factor
