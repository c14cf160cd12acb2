"""Makes tests/gpu/blocks: attention blocks as the export makes them, and what they should give.

    python -m tests.support.hard_blocks

A machine with a GPU need not have torch, so these files are made before and committed.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from export.attention.focused_linear import ChannelFirstFLA
from export.precision.half import to_half
from model.attention.focused_linear import FocusedLinearAttention
from tests.support.hard_maps import CHANNELS, ordinary
from tests.unit.export.test_half import Block, traced
from tests.unit.export.test_rewrite import trained

FOLDER = Path(__file__).parents[1] / "gpu" / "blocks"
SIZES = (1e-3, 1.0, 1e3)


def attentions() -> dict[str, FocusedLinearAttention]:
    """The attentions, by the name of their files: random, and one whose tokens are all negative."""
    negative = trained(num_patches=None)
    assert negative.q.bias is not None
    assert negative.kv.bias is not None
    torch.nn.init.constant_(negative.q.bias, -5e4)
    torch.nn.init.constant_(negative.kv.bias[:CHANNELS], -5e4)
    return {"random": trained(), "negative": negative}


def expected(attention: FocusedLinearAttention) -> dict[str, NDArray[np.float32]]:
    """What the module gives in float64 for `ordinary` maps of each size, by `size`."""
    with torch.inference_mode():
        return {
            f"{size:g}": attention(torch.from_numpy(ordinary(size)).double()).float().numpy()
            for size in SIZES
        }


def main() -> None:
    """Writes two graphs and their answers for each attention."""
    FOLDER.mkdir(exist_ok=True)
    for name, attention in attentions().items():
        single = traced(Block(ChannelFirstFLA(attention)))
        (FOLDER / f"{name}-fp32.onnx").write_bytes(single.SerializeToString())
        (FOLDER / f"{name}-fp16.onnx").write_bytes(to_half(single).SerializeToString())
        answers = expected(attention)
        np.savez_compressed(FOLDER / f"{name}.npz", allow_pickle=False, **answers)
        largest = {size: float(np.abs(answer).max()) for size, answer in answers.items()}
        print(name, largest)


if __name__ == "__main__":
    main()
