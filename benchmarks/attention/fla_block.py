"""The exported attention block against the plain trace of the published form, in ONNX Runtime.

    python -m benchmarks.attention.fla_block

Both forms carry the same weights and are checked to give the same output. Sessions live one at a
time, because the spinning threads of an idle one slow the other down, and take turns for several
rounds; what counts is the ratio of their times within a round.
"""

import argparse
import io
import json
import os
import platform
import statistics
import time
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from model.attention.focused_linear import EPSILON, FocusedLinearAttention
from model.environment import contain_ultralytics

# Tokens of a square map x channels: the three levels of a scale n network at 640 pixels.
SIZES = ((400, 256), (1600, 128), (6400, 64))


class PublishedFLA(FocusedLinearAttention):
    """The module with the focusing map as the published code writes it."""

    def phi(self, t: torch.Tensor) -> torch.Tensor:
        """(B, N, C) to the same; overflows and underflows where ours does not."""
        t = (F.relu(t) + EPSILON) / F.softplus(self.scale)
        norm = t.norm(dim=-1, keepdim=True)
        t = t**self.focusing_factor
        focused: torch.Tensor = t / t.norm(dim=-1, keepdim=True) * norm
        return focused


def traced(module: nn.Module, x: torch.Tensor, *, any_map_size: bool = False) -> bytes:
    """The module as ONNX bytes, for inputs of the shape of `x`, or of any height and width."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            (x,),
            buffer,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=17,
            input_names=["x"],
            dynamic_axes={"x": {2: "height", 3: "width"}} if any_map_size else None,
        )
    return buffer.getvalue()


def seconds(model: bytes, x: NDArray[np.float32], threads: int, repeats: int) -> float:
    """Median time of one run, in a session of its own."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    times = []
    for _ in range(repeats + repeats // 4):
        started = time.perf_counter()
        session.run(None, {"x": x})
        times.append(time.perf_counter() - started)
    return statistics.median(times[repeats // 4 :])  # the first ones warm up


def output(model: bytes, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a model gives for `x`."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0], np.float32)


def compare(
    tokens: int, channels: int, threads: int, rounds: int, repeats: int
) -> dict[str, float]:
    """Milliseconds of both forms and the median, over rounds, of the ratio of their times."""
    from export.attention.focused_linear import ChannelFirstFLA

    side = int(tokens**0.5)
    torch.manual_seed(0)
    attention = PublishedFLA(channels, (side, side), num_heads=8, qkv_bias=True)
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(1, channels, side, side)
    published, exported = traced(attention, x), traced(ChannelFirstFLA(attention), x)
    pixels = x.numpy()
    expected = output(published, pixels)
    difference = np.abs(output(exported, pixels) - expected).max() / np.abs(expected).max()
    if difference > 1e-5:
        raise SystemExit(f"the two forms differ by {difference:.1e} of the largest output")
    pairs = [
        (seconds(exported, pixels, threads, repeats), seconds(published, pixels, threads, repeats))
        for _ in range(rounds)
    ]
    return {
        "tokens": tokens,
        "channels": channels,
        "exported_ms": 1e3 * statistics.median(ours for ours, _ in pairs),
        "published_ms": 1e3 * statistics.median(theirs for _, theirs in pairs),
        "ratio": statistics.median(ours / theirs for ours, theirs in pairs),
        "lowest_ratio": min(ours / theirs for ours, theirs in pairs),
        "highest_ratio": max(ours / theirs for ours, theirs in pairs),
        "relative_difference": float(difference),
    }


def main() -> None:
    """Prints a row for each size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--repeats", type=int, default=40, help="runs a round")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    contain_ultralytics()  # before export.rewrite is imported
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    print(f"{'tokens x channels':<20}{'exported':>12}{'published':>12}{'ratio':>8}{'spread':>16}")
    rows = []
    for tokens, channels in SIZES:
        row = compare(tokens, channels, arguments.threads, arguments.rounds, arguments.repeats)
        rows.append(row)
        spread = f"{row['lowest_ratio']:.2f} to {row['highest_ratio']:.2f}"
        print(
            f"{f'{tokens} x {channels}':<20}{row['exported_ms']:>9.2f} ms"
            f"{row['published_ms']:>9.2f} ms{row['ratio']:>8.2f}{spread:>16}"
        )
    if arguments.json:
        machine = {
            "processor": platform.processor() or platform.machine(),
            "threads": arguments.threads,
            "onnxruntime": onnxruntime.__version__,
            "torch": torch.__version__,
        }
        arguments.json.write_text(json.dumps({"machine": machine, "sizes": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
