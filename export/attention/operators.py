"""What several export forms are made of."""

import torch
from torch import Tensor, nn


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
