"""Attention as the matrix it is: one row a query, one column a key. Only for looking at it.

Linear attention never forms this matrix; here it is formed, in float64, to be measured.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from model.attention.focused_linear import EPSILON, focus


def softmax_map(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """softmax(q kᵀ / √d) of every head.

    Args:
        q: (N, C) queries, before any feature map.
        k: (n, C) keys.
        heads: h, a divisor of C; d = C / h.

    Returns:
        (h, N, n), rows sum to 1.
    """
    q, k = split_heads(q, heads), split_heads(k, heads)
    return (q @ k.transpose(1, 2) / math.sqrt(q.shape[2])).softmax(-1)


def focused_map(q: Tensor, k: Tensor, heads: int, p: float, scale: Tensor | float = 1.0) -> Tensor:
    """φ(q) φ(k)ᵀ divided by its row sums as focused linear attention divides them.

    Args:
        q: (N, C) queries, before the feature map.
        k: (n, C) keys, their positional encoding added.
        heads: h, a divisor of C.
        p: focusing factor; 1 is linear attention with ReLU.
        scale: what queries and keys are divided by, softplus of the learned parameter, (C,).

    Returns:
        (h, N, n). Rows sum to a little less than 1, because of the epsilon in z, which counts
        where a query and the keys hardly share a channel.

    Source: arXiv 2308.00442, equations 3 to 5; the matrix of `FocusedLinearAttention.attend`.
    """
    q, k = (split_heads(focus((F.relu(t) + EPSILON) / scale, p), heads) for t in (q, k))
    similarity = q @ k.transpose(1, 2)  # (h, N, n)
    return similarity / (similarity.sum(-1, keepdim=True) + EPSILON * k.shape[1])


def split_heads(t: Tensor, heads: int) -> Tensor:
    """(N, C) to (h, N, d)."""
    return t.reshape(t.shape[0], heads, -1).transpose(0, 1)


def dwc_maps(weight: Tensor, map_hw: tuple[int, int]) -> Tensor:
    """The depthwise convolution as one matrix a channel.

    Args:
        weight: (d, 1, k, k) of the convolution, stride 1, padded by k // 2 with zeros.
        map_hw: (height, width) of the map; N = height · width.

    Returns:
        (d, N, N); matrix c times channel c of the tokens, (N,), is the convolution of that
        channel, without its bias.
    """
    tokens = map_hw[0] * map_hw[1]
    impulses = torch.eye(tokens, dtype=weight.dtype).reshape(tokens, 1, *map_hw)
    responses = F.conv2d(impulses, weight, padding=weight.shape[2] // 2)  # (N, d, H, W)
    return responses.flatten(2).permute(1, 2, 0)


def row_entropy(attention: Tensor) -> Tensor:
    """Entropy of each row as a share of the largest there can be.

    Args:
        attention: (..., N, n), not negative, n > 1; rows are normalised to sum 1 first.

    Returns:
        (..., N) in 0..1: 1 for a row that weighs all n tokens equally, 0 for one that picks one.
    """
    rows = attention / attention.sum(-1, keepdim=True)
    share: Tensor = torch.special.entr(rows).sum(-1) / math.log(attention.shape[-1])
    return share


def numerical_rank(singular_values: Tensor) -> Tensor:
    """How many singular values float32 can tell from zero.

    Args:
        singular_values: (..., N) of N x N matrices, largest first.

    Returns:
        (...,) int64: those above N · 2^-23 times the largest, the rule of NumPy and torch.
    """
    size = singular_values.shape[-1]
    limit = singular_values[..., :1] * size * torch.finfo(torch.float32).eps
    rank: Tensor = (singular_values > limit).sum(-1)
    return rank


def effective_rank(singular_values: Tensor) -> Tensor:
    """Exponential of the entropy of the singular values as shares of their sum.

    Args:
        singular_values: (..., N), not negative.

    Returns:
        (...,) in 1..N: N when all are equal, near 1 when one of them is nearly everything.

    Source: Roy and Vetterli, "The effective rank", EUSIPCO 2007.
    """
    shares = singular_values / singular_values.sum(-1, keepdim=True)
    rank: Tensor = torch.special.entr(shares).sum(-1).exp()
    return rank
