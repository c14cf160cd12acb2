"""Feature maps that do harm to an attention in float16 or with a careless normaliser."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

CHANNELS = 32
MAPS = 250  # a batch


def adversarial(rng: np.random.Generator) -> Iterator[NDArray[np.float64]]:
    """Four batches of maps (MAPS, C, 6, 6): 1,000 maps of every kind that could do harm."""
    shape = (MAPS, CHANNELS, 6, 6)
    amounts = 10 ** rng.uniform(-8, np.log10(6e4), (MAPS, 1, 1, 1))
    yield rng.normal(size=shape) * amounts / 3

    # All tokens alike: zero, tiny, huge, all negative, all positive, or of two signs.
    alike = np.broadcast_to(rng.normal(size=(MAPS, CHANNELS, 1, 1)), shape) * amounts
    alike[:50] = 0
    alike[50:100] = -amounts[50:100]
    alike[100:150] = amounts[100:150]
    yield alike

    # One hot channel, or one hot token, and nothing or next to nothing elsewhere.
    hot = np.where(np.arange(MAPS)[:, None, None, None] % 2, 0, 1e-8) * rng.normal(size=shape)
    hot[np.arange(125), rng.integers(0, CHANNELS, 125)] = amounts[:125, 0]
    hot[np.arange(125, MAPS), :, 3, 3] = amounts[125:, :, 0, 0]
    yield hot

    # As large as a float16 number gets, signs by chance, by channel or by token.
    signs = rng.choice([-1, 1], shape)
    signs[80:160] = signs[80:160, :, :1, :1]
    signs[160:] = signs[160:, :1]
    yield 6e4 * signs


def ordinary(size: float) -> NDArray[np.float32]:
    """Two maps (2, C, 9, 6) of normally distributed activations of that size."""
    maps = np.random.default_rng(0).normal(size=(2, CHANNELS, 9, 6)) * size
    # Of float16 numbers, so that both precisions are given the same.
    return maps.astype(np.float16).astype(np.float32)
