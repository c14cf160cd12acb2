"""Claim (a): the focusing map makes the rows of linear attention sharper."""

from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.attention.attention_maps import focused_map, row_entropy, softmax_map
from benchmarks.attention.trained import Tokens

FACTORS = (1, 2, 3, 4, 6, 8)  # p; 1 is linear attention with ReLU, 3 the default


def measure_focus(tokens: Sequence[Tokens]) -> dict[str, Any]:
    """Normalised entropy of the attention rows, all heads of all images together.

    Returns:
        `tokens`: N of each; `softmax`: the statistics of `summary`; `focused`: the same for each
        p, by its text.
    """
    softmax = torch.cat([entropies(each, None) for each in tokens], dim=1)
    focused = {
        str(p): summary(torch.cat([entropies(each, p) for each in tokens], dim=1)) for p in FACTORS
    }
    return {
        "tokens": [len(each.q) for each in tokens],
        "softmax": summary(softmax),
        "focused": focused,
    }


def entropies(tokens: Tokens, p: float | None) -> torch.Tensor:
    """(h, N) row entropies in 0..1; of the softmax map when p is None."""
    if p is None:
        return row_entropy(softmax_map(tokens.q, tokens.k, tokens.heads))
    return row_entropy(focused_map(tokens.q, tokens.k, tokens.heads, p, tokens.scale))


def summary(entropy: torch.Tensor) -> dict[str, Any]:
    """Mean, 10th and 90th percentile over all rows, and the mean of each head, of (h, rows)."""
    low, high = torch.quantile(entropy, torch.tensor([0.1, 0.9], dtype=entropy.dtype)).tolist()
    return {
        "mean": float(entropy.mean()),
        "low": low,
        "high": high,
        "heads": entropy.mean(1).tolist(),
    }


def attention_rows(tokens: Tokens, token: int) -> tuple[int, dict[str, torch.Tensor]]:
    """One token's attention row in several forms, of the head that is sharpest there at p = 3.

    Args:
        tokens: of an image.
        token: index into its N.

    Returns:
        The head's index, and (H, W) rows that sum to 1, by the form's name.
    """
    maps = {"softmax": softmax_map(tokens.q, tokens.k, tokens.heads)}
    for p in (1, 3, 8):
        maps[f"p = {p}"] = focused_map(tokens.q, tokens.k, tokens.heads, p, tokens.scale)
    head = int(row_entropy(maps["p = 3"])[:, token].argmin())
    rows = {name: each[head, token] for name, each in maps.items()}
    return head, {name: (row / row.sum()).reshape(tokens.map_hw) for name, row in rows.items()}
