"""Claim (b): the depthwise convolution (DWC) gives the attention map its rank back."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.attention.attention_maps import (
    dwc_maps,
    effective_rank,
    focused_map,
    numerical_rank,
    softmax_map,
)
from benchmarks.attention.trained import Tokens

FOCUSING_FACTOR = 3
# Every matrix is decomposed on its own; more values than that are only in the way of a reader.
SPECTRUM_DIGITS = 4


def measure_diversity(tokens: Sequence[Tokens]) -> dict[str, Any]:
    """Ranks and spectra of the attention maps, without and with the DWC.

    Each channel of a head has its own convolution, so with it a head has not one map but d; their
    figures are averaged.

    Returns:
        `images`, one each: `name`, `tokens` N, `head_dim` d, `dwc_to_attention`: the ratio of
        their Frobenius norms; and `forms`: by name, `rank` and `effective_rank` of every head,
        and `spectrum`: N singular values as shares of the largest, largest first, the geometric
        mean over heads and channels. The DWC alone counts as one head.
    """
    return {"images": [measure_image(each) for each in tokens]}


def measure_image(tokens: Tokens) -> dict[str, Any]:
    """The figures of one image, see `measure_diversity`."""
    assert tokens.dwc_weight is not None
    linear = focused_map(tokens.q, tokens.k, tokens.heads, 1, tokens.scale)
    focused = focused_map(tokens.q, tokens.k, tokens.heads, FOCUSING_FACTOR, tokens.scale)
    convolution = dwc_maps(tokens.dwc_weight, tokens.map_hw)  # (d, N, N), shared by the heads
    forms = {
        "softmax": softmax_map(tokens.q, tokens.k, tokens.heads)[:, None],
        "linear": linear[:, None],
        "focused": focused[:, None],
        "DWC": convolution[None],
    }
    figures = {name: figures_of(maps) for name, maps in forms.items()}
    # A head at a time: all maps of all channels at once would take gigabytes.
    for name, maps in (("linear + DWC", linear), ("focused + DWC", focused)):
        heads = [figures_of((head + convolution)[None]) for head in maps]
        figures[name] = {
            "rank": [head["rank"][0] for head in heads],
            "effective_rank": [head["effective_rank"][0] for head in heads],
            "spectrum": geometric_mean(torch.tensor([head["spectrum"] for head in heads])),
        }
    return {
        "name": tokens.name,
        "tokens": len(tokens.q),
        "head_dim": tokens.q.shape[1] // tokens.heads,
        "dwc_to_attention": float(norm(convolution).mean() / norm(focused).mean()),
        "forms": figures,
    }


def figures_of(maps: Tensor) -> dict[str, Any]:
    """Rank, effective rank and spectrum of (h, m, N, N) maps, each averaged over the m."""
    values = torch.linalg.svdvals(maps)  # (h, m, N)
    shares = values / values[..., :1]
    return {
        "rank": numerical_rank(values).double().mean(1).tolist(),
        "effective_rank": effective_rank(values).mean(1).tolist(),
        "spectrum": geometric_mean(shares.flatten(0, 1)),
    }


def geometric_mean(spectra: Tensor) -> list[float]:
    """Over the first axis of (m, N) values in 0..1, with four digits; zeros count as 1e-18."""
    logs = spectra.double().clamp_min(1e-18).log().mean(0)
    return [float(f"{value:.{SPECTRUM_DIGITS}g}") for value in logs.exp().tolist()]


def norm(matrices: Tensor) -> Tensor:
    """Frobenius norms of (m, N, N)."""
    norms: Tensor = matrices.flatten(1).norm(dim=1)
    return norms
