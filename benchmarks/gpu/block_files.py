"""The attention block as ONNX files, for machines without torch: ours and the published form.

"ours" is what an artifact of that precision holds: in a float16 one it computes in float32 all the
same, between two casts. "published" is the plain trace; in float16 all of it is, which is what a
converter makes of it (its powers overflow there for some inputs; the time is the same).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx
import torch
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import nn

from benchmarks.attention.fla_block import SIZES, PublishedFLA, traced
from benchmarks.gpu.manifest import BlockFile
from export.attention.focused_linear import ChannelFirstFLA
from export.precision.half import LARGEST

BATCHES = (1, 16)


class BetweenCasts(nn.Module):
    """A float32 module with float16 on both sides, as the export leaves an attention."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Float16 to float16 of the same shape."""
        y: torch.Tensor = self.inner(x.float())
        return y.clamp(-LARGEST, LARGEST).half()


def write_blocks(
    folder: Path, sizes: Sequence[tuple[int, int]] = SIZES
) -> Iterator[tuple[BlockFile, str]]:
    """Writes all blocks of some (tokens, channels).

    Yields:
        Each with the name of its weights, which its batch sizes share.
    """
    for tokens, channels in sizes:
        side = int(tokens**0.5)
        torch.manual_seed(0)
        attention = PublishedFLA(channels, (side, side), num_heads=8, qkv_bias=True)
        for parameter in attention.parameters():
            nn.init.normal_(parameter, std=0.3)
            parameter.data = (16 * parameter.data).round() / 16  # packs to a third
        ours = ChannelFirstFLA(attention)
        for batch in BATCHES:
            x = torch.randn(batch, channels, side, side)
            published = onnx.load_from_string(traced(attention, x))
            models = {
                ("ours", "fp32"): onnx.load_from_string(traced(ours, x)),
                ("ours", "fp16"): onnx.load_from_string(traced(BetweenCasts(ours), x.half())),
                ("published", "fp32"): published,
                ("published", "fp16"): convert_float_to_float16(published, keep_io_types=False),
            }
            for (form, precision), model in models.items():
                stem = f"block-{tokens}x{channels}-{form}-{precision}"
                file = f"{stem}-batch{batch}.onnx"
                (folder / f"{stem}.bin").unlink(missing_ok=True)  # or weights are put behind it
                onnx.save_model(
                    model,
                    folder / file,
                    save_as_external_data=True,
                    all_tensors_to_one_file=True,
                    location=f"{stem}.bin",
                    size_threshold=256,
                )
                block = BlockFile(file, form, precision, batch, tokens, channels)
                yield block, f"{stem}.bin"
