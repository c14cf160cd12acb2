"""Claim (c): FLA's time grows with the tokens, softmax attention's with their square."""

import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.attention.fla_block import traced
from export.attention.focused_linear import ChannelFirstFLA, projections
from export.attention.operators import constant, pointwise
from model.attention.focused_linear import FocusedLinearAttention
from server.host import cpu_name

SIDES = (10, 14, 20, 28, 40, 56, 80, 112, 160)  # of square maps: 100 to 25,600 tokens
ENCODED_HW = (20, 20)  # of the positional encoding, as in yolov8n-fla; interpolated at other sizes
FIT_FROM_TOKENS = 1600  # below, the cost of starting operators bends the curves
RUN_S = 0.3  # a form is run again within a round until it has taken this long


class SoftmaxAttention(nn.Module):
    """Softmax attention over the same projections: MatMul, Softmax, MatMul, a head at a time.

    Heads follow one another because all their N x N maps at once would not fit into memory; they
    run no faster side by side, as each fills all threads.

    Args:
        attention: whose q, k, v and output projections and positional encoding are taken; with
            `sr_ratio` 1.
    """

    def __init__(self, attention: FocusedLinearAttention) -> None:
        super().__init__()
        dim = attention.dim
        weight, bias = projections(attention)
        scale = attention.head_dim**-0.5  # folded into q
        self.heads = attention.num_heads
        self.q = pointwise(weight[:dim] * scale, bias[:dim] * scale)
        self.k = pointwise(weight[dim : 2 * dim], bias[dim : 2 * dim])
        self.v = pointwise(weight[2 * dim :], bias[2 * dim :])
        assert attention.positional_encoding is not None
        assert attention.encoded_hw is not None
        encoding = attention.positional_encoding.transpose(1, 2)
        self.encoding = constant(encoding.reshape(1, dim, *attention.encoded_hw))
        self.proj = pointwise(attention.proj.weight.double(), attention.proj.bias.double())

    def forward(self, x: Tensor) -> Tensor:
        """(1, C, H, W) float32 to the same shape."""
        q, k, v = self.q(x), self.k(x), self.v(x)
        k = k + F.interpolate(self.encoding, k.shape[2:], mode="bilinear", align_corners=False)
        heads = (t.flatten(2).chunk(self.heads, dim=1) for t in (q, k, v))
        outputs = []
        for q_h, k_h, v_h in zip(*heads, strict=True):  # (1, d, N) each
            rows = F.softmax(q_h.transpose(1, 2) @ k_h, dim=-1)  # (1, N, N)
            outputs.append((rows @ v_h.transpose(1, 2)).transpose(1, 2))  # (1, d, N)
        y: Tensor = self.proj(torch.cat(outputs, dim=1).reshape(x.shape))
        return y


def gflops_fla(tokens: int, dim: int, heads: int, kernel_size: int = 5) -> float:
    """10^9 operations of the products in focused linear attention, two a multiply-add.

    Projections 8NC², keys with values and queries with that 4NCd, z 2NC, DWC 2k²NC; what is done by
    element (powers, norms, divisions) is left out, here and for softmax.
    """
    head_dim = dim // heads
    return tokens * dim * (8 * dim + 4 * head_dim + 2 + 2 * kernel_size**2) / 1e9


def gflops_softmax(tokens: int, dim: int) -> float:
    """The same for softmax attention: projections 8NC², the two products with the map 4N²C."""
    return tokens * dim * (8 * dim + 4 * tokens) / 1e9


def softmax_gigabytes(tokens: int) -> float:
    """10^9 bytes that one head's map takes: its scores and their softmax, float32 each.

    Twice that, because ONNX Runtime's arena grows in powers of two (seen: 11.5 at 25,600 tokens).
    """
    return 2 * 2 * 4 * tokens**2 / 1e9


def available_gigabytes() -> float:
    """10^9 bytes of memory that are free or can be freed; infinite where Linux does not say."""
    table = Path("/proc/meminfo")
    lines = table.read_text().splitlines() if table.exists() else []
    kib = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return kib[0] * 1024 / 1e9 if kib else math.inf


def fitted_exponent(tokens: Sequence[int], times: Sequence[float]) -> float:
    """The b of time = a · tokens^b, by least squares on the logarithms; at least two points."""
    slope, _ = np.polyfit(np.log(tokens), np.log(times), 1)
    return float(slope)


def measure_cost(
    sides: Sequence[int],
    dim: int,
    heads: int,
    threads: int,
    rounds: int,
    memory_gb: float,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Times both forms at every size, taking turns for several rounds.

    Args:
        sides: of the square maps.
        dim: channels.
        heads: of both forms.
        threads: of ONNX Runtime.
        rounds: how often everything is measured; the median of their fastest runs counts.
        memory_gb: softmax is skipped at sizes whose map takes more, in 10^9 bytes.
        report: is told of progress.

    Returns:
        The settings, the machine, `points`: one a size with `tokens`, and by form `ms`, `low_ms`,
        `high_ms` (over rounds), `gflops`; `skipped`: token counts without softmax; and
        `exponents`: by form, from `FIT_FROM_TOKENS` on (`asymptotic`) and of all (`whole`).
    """
    models = exported_forms(dim, heads)
    fits_memory = {side: softmax_gigabytes(side * side) <= memory_gb for side in sides}
    times: dict[tuple[int, str], list[float]] = {}
    for number in range(1, rounds + 1):
        for side in sides:
            x = np.random.default_rng(0).standard_normal((1, dim, side, side)).astype(np.float32)
            for form, model in models.items():
                if form == "fla" or fits_memory[side]:
                    times.setdefault((side, form), []).append(milliseconds(model, x, threads))
        report(f"cost: round {number} of {rounds}")
    points = [point(side, dim, heads, times) for side in sides]
    return {
        "machine": machine(),
        "threads": threads,
        "rounds": rounds,
        "dim": dim,
        "heads": heads,
        "memory_gb": memory_gb,
        "fit_from_tokens": FIT_FROM_TOKENS,
        "points": points,
        "skipped": [side * side for side in sides if not fits_memory[side]],
        "exponents": {form: exponents(points, form) for form in ("fla", "softmax")},
    }


def exported_forms(dim: int, heads: int) -> dict[str, bytes]:
    """Both forms as ONNX with the same random weights, for maps of any size, as in an artifact."""
    torch.manual_seed(0)
    attention = FocusedLinearAttention(dim, ENCODED_HW, num_heads=heads, qkv_bias=True)
    forms = {"fla": ChannelFirstFLA(attention), "softmax": SoftmaxAttention(attention)}
    x = torch.zeros(1, dim, *ENCODED_HW)
    return {form: traced(module, x, any_map_size=True) for form, module in forms.items()}


def milliseconds(model: bytes, x: NDArray[np.float32], threads: int) -> float:
    """The fastest of a few runs, in a session of its own.

    The fastest, because what else the machine does can only add to a run. Two runs come before:
    ONNX Runtime's arena still takes memory from the system in the second.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    for _ in range(2):
        session.run(None, {"x": x})
    times: list[float] = []
    while sum(times) < RUN_S:
        started = time.perf_counter()
        session.run(None, {"x": x})
        times.append(time.perf_counter() - started)
    return 1e3 * min(times)


def point(
    side: int, dim: int, heads: int, times: dict[tuple[int, str], list[float]]
) -> dict[str, Any]:
    """The figures of one size, see `measure_cost`."""
    tokens = side * side
    gflops = {"fla": gflops_fla(tokens, dim, heads), "softmax": gflops_softmax(tokens, dim)}
    figures: dict[str, Any] = {"tokens": tokens}
    for form, count in gflops.items():
        measured = times.get((side, form))
        figures[form] = {"gflops": count} | (
            {"ms": statistics.median(measured), "low_ms": min(measured), "high_ms": max(measured)}
            if measured
            else {}
        )
    return figures


def exponents(points: Sequence[dict[str, Any]], form: str) -> dict[str, float | None]:
    """Fitted to the measured points, from `FIT_FROM_TOKENS` on and all; None below two points."""
    measured = [(each["tokens"], each[form]["ms"]) for each in points if "ms" in each[form]]
    late = [pair for pair in measured if pair[0] >= FIT_FROM_TOKENS]
    return {
        name: fitted_exponent(*zip(*pairs, strict=True)) if len(pairs) > 1 else None
        for name, pairs in (("asymptotic", late), ("whole", measured))
    }


def machine() -> dict[str, Any]:
    """What the figures belong to."""
    return {
        "processor": cpu_name(),
        "cpus": os.cpu_count(),
        "onnxruntime": onnxruntime.__version__,
        "torch": torch.__version__,
    }
