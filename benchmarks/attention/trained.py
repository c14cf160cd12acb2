"""Queries and keys of a trained network on images, and Gaussian ones to compare with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from export.buckets import buckets
from export.sources.checkpoint import load_checkpoint
from export.verification.images import MAX_PIXELS
from model.attention.focused_linear import FocusedLinearAttention
from model.registration import register
from server.vision.decode import decode
from server.vision.letterbox import Letterbox, choose_bucket, full_size, letterbox

GAUSSIAN_HW, GAUSSIAN_CHANNELS, GAUSSIAN_HEADS = (12, 15), 256, 8


@dataclass(frozen=True)
class Tokens:
    """What one attention works on, for one image; all tensors float64.

    Attributes:
        name: of the image.
        q: (N, C) queries, before the feature map.
        k: (N, C) keys, their positional encoding added.
        heads: h.
        scale: (C,) what both are divided by, softplus of the learned parameter.
        map_hw: (height, width) of the map; N = height · width.
        dwc_weight: (d, 1, k, k) of the depthwise convolution; None where there is no trained one.
        canvas: (H, W, 3) uint8, the letterboxed image; None where there is none.
        placed: how the image lies in the canvas.
    """

    name: str
    q: Tensor
    k: Tensor
    heads: int
    scale: Tensor
    map_hw: tuple[int, int]
    dwc_weight: Tensor | None = None
    canvas: NDArray[np.uint8] | None = None
    placed: Letterbox | None = None


def trained_tokens(checkpoint: Path, images: Sequence[Path], imgsz: int) -> list[Tokens]:
    """The tokens of a detector's first focused linear attention, one an image.

    Args:
        checkpoint: a `.pt` as `python -m export` takes it.
        images: each is letterboxed into its bucket, as the server does it.
        imgsz: the longer side of the network's input in pixels.

    Raises:
        ValueError: there is no attention in the network, or its keys are of a reduced map.
    """
    register()
    model = load_checkpoint(checkpoint).model
    found = [part for part in model.modules() if isinstance(part, FocusedLinearAttention)]
    if not found or found[0].sr_ratio > 1:
        raise ValueError(f"{checkpoint}: no focused linear attention with sr_ratio 1 in it")
    attention = found[0]
    shapes = buckets(imgsz, int(model.stride.max()))
    tokens = []
    for path in images:
        image = decode(path.read_bytes(), max_pixels=MAX_PIXELS)
        bucket_hw = choose_bucket((image.shape[0], image.shape[1]), shapes)
        canvas, placed = letterbox(image, bucket_hw, full_hw=full_size(shapes))
        x = input_of(attention, model, canvas)
        tokens.append(tokens_of(path.stem, attention, x, canvas, placed))
    return tokens


def input_of(
    attention: FocusedLinearAttention, model: torch.nn.Module, canvas: NDArray[np.uint8]
) -> Tensor:
    """The feature map (1, C, H, W) that the attention sees when the network sees the canvas."""
    seen: list[Tensor] = []
    hook = attention.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        with torch.no_grad():
            model(torch.from_numpy(canvas).permute(2, 0, 1)[None].float() / 255)
    finally:
        hook.remove()
    return seen[0]


@torch.no_grad()
def tokens_of(
    name: str,
    attention: FocusedLinearAttention,
    x: Tensor,
    canvas: NDArray[np.uint8] | None = None,
    placed: Letterbox | None = None,
) -> Tokens:
    """Projects a feature map (1, C, H, W) into the attention's queries and keys."""
    map_hw = x.shape[2], x.shape[3]
    q, k, _, _ = attention.project(x.flatten(2).transpose(1, 2), map_hw)
    if attention.positional_encoding is not None:
        k = k + attention.positional_encoding_at(map_hw)
    return Tokens(
        name=name,
        q=q[0].double(),
        k=k[0].double(),
        heads=attention.num_heads,
        scale=F.softplus(attention.scale.double()).reshape(-1),
        map_hw=map_hw,
        dwc_weight=attention.dwc.weight.double(),
        canvas=canvas,
        placed=placed,
    )


def gaussian_tokens(seed: int) -> Tokens:
    """Independent standard normal queries and keys, of the default weights' shape at 480 px."""
    rng = np.random.default_rng(seed)
    shape = GAUSSIAN_HW[0] * GAUSSIAN_HW[1], GAUSSIAN_CHANNELS
    q, k = (torch.from_numpy(rng.standard_normal(shape)) for _ in range(2))
    scale = torch.ones(GAUSSIAN_CHANNELS, dtype=torch.float64)
    return Tokens(f"seed {seed}", q, k, GAUSSIAN_HEADS, scale, GAUSSIAN_HW)
