"""The plots of the three claims, readable without colour too."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from benchmarks.attention.attention_maps import row_entropy
from benchmarks.attention.focus import FACTORS, attention_rows
from benchmarks.attention.trained import Tokens

# Okabe and Ito's palette, which colour-blind readers can tell apart.
SOFTMAX, FOCUSED, LINEAR, DWC = "#D55E00", "#0072B2", "#009E73", "#CC79A7"
STYLES: Mapping[str, Mapping[str, Any]] = {
    "softmax": {"color": SOFTMAX, "marker": "s", "linestyle": "-"},
    "linear": {"color": LINEAR, "marker": "^", "linestyle": "--"},
    "focused": {"color": FOCUSED, "marker": "o", "linestyle": "-"},
    "focused + DWC": {"color": DWC, "marker": "D", "linestyle": "-"},
}
LABELS = {
    "softmax": "softmax",
    "linear": "linear (p = 1)",
    "focused": "focused (p = 3)",
    "focused + DWC": "focused (p = 3) + DWC",
}
DPI = 130
POINTS: Mapping[str, Any] = {"textcoords": "offset points", "fontsize": 9}


def plot_focus(figures: Mapping[str, Any], path: Path) -> None:
    """Row entropy over p, for trained and for Gaussian queries and keys."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True, layout="constrained")
    titles = {"trained": "q, k of the trained weights", "gaussian": "Gaussian q, k"}
    for axis, (source, title) in zip(axes, titles.items(), strict=True):
        focused = [figures[source]["focused"][str(p)] for p in FACTORS]
        axis.fill_between(
            FACTORS,
            [each["low"] for each in focused],
            [each["high"] for each in focused],
            color=FOCUSED,
            alpha=0.18,
            linewidth=0,
        )
        axis.plot(FACTORS, [each["mean"] for each in focused], color=FOCUSED, marker="o")
        softmax = figures[source]["softmax"]
        axis.axhspan(softmax["low"], softmax["high"], color=SOFTMAX, alpha=0.13, linewidth=0)
        axis.axhline(softmax["mean"], color=SOFTMAX, linestyle="--")
        axis.annotate("softmax", (8, softmax["mean"]), (0, 3), color=SOFTMAX, ha="right", **POINTS)
        axis.plot([1], [focused[0]["mean"]], **STYLES["linear"])
        for text, p, at, colour in (
            ("linear (p = 1)", 1, (1, 0.62), LINEAR),
            ("focused, default (p = 3)", 3, (1.7, 0.44), FOCUSED),
        ):
            axis.annotate(
                text,
                (p, focused[FACTORS.index(p)]["mean"]),
                at,
                color=colour,
                fontsize=9,
                arrowprops={"arrowstyle": "-", "color": colour, "shrinkB": 4},
            )
        axis.set(title=title, xlabel="focusing factor p", xticks=FACTORS, ylim=(0, 1.04))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("entropy of attention rows / log N\n(1 = all tokens weigh the same)")
    figure.supxlabel(
        "lines: mean over rows, heads and images; bands: 10th to 90th percentile", fontsize=8
    )
    save(figure, path)


def plot_rows(tokens: Tokens, token_hw: tuple[int, int], path: Path) -> None:
    """What one token attends to, drawn over the image.

    Args:
        tokens: of an image, with its canvas.
        token_hw: (row, column) of the token on the map.
        path: where to.
    """
    assert tokens.canvas is not None
    height, width = tokens.map_hw
    head, rows = attention_rows(tokens, token_hw[0] * width + token_hw[1])
    titles = {
        "softmax": "softmax",
        "p = 1": "linear (p = 1)",
        "p = 3": "focused (p = 3)",
        "p = 8": "focused (p = 8)",
    }
    side = tokens.canvas.shape[0] // height  # of a token, in pixels
    extent = (0, width * side, height * side, 0)
    # One scale for all; its root, or the flat rows would be black.
    scale = mpl.colors.PowerNorm(0.5, 0, max(float(row.max()) for row in rows.values()))
    figure, axes = plt.subplots(1, 5, figsize=(12, 2.45), layout="constrained")
    axes[0].imshow(tokens.canvas)
    axes[0].set_title("the token of the query", fontsize=10)
    for axis, (name, title) in zip(axes[1:], titles.items(), strict=True):
        image = axis.imshow(rows[name].numpy(), cmap="magma", extent=extent, norm=scale)
        axis.set_title(f"{title}: {float(row_entropy(rows[name].flatten())):.2f}", fontsize=10)
    for axis in axes:
        corner = token_hw[1] * side, token_hw[0] * side
        for colour, line_width in (("black", 3.0), ("white", 1.4)):
            axis.add_patch(Rectangle(corner, side, side, fill=False, color=colour, lw=line_width))
        axis.set(xticks=[], yticks=[])
    bar = figure.colorbar(image, ax=axes[1:], shrink=0.75, pad=0.01)
    bar.set_label("weight of a token", fontsize=8)
    bar.set_ticks([0, 1 / len(tokens.q), 0.05, 0.1, 0.2], labels=["0", "1/N", "0.05", "0.1", "0.2"])
    bar.ax.tick_params(labelsize=8)
    figure.supxlabel(
        f"head {head + 1} of {tokens.heads}, {height} x {width} tokens; "
        "numbers: the row's entropy / log N",
        fontsize=8,
    )
    save(figure, path)


def plot_diversity(figures: Mapping[str, Any], path: Path) -> None:
    """Spectra and ranks of the attention maps of the first image."""
    image = figures["images"][0]
    tokens, head_dim = image["tokens"], image["head_dim"]
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    spectra, ranks = axes
    for name, style in STYLES.items():
        values = np.array(image["forms"][name]["spectrum"])
        spectra.plot(
            np.arange(1, tokens + 1),
            np.where(values > 1e-10, values, np.nan),
            color=style["color"],
            linestyle=style["linestyle"],
        )
        heads = image["forms"][name]["rank"]
        ranks.plot(
            range(1, len(heads) + 1),
            heads,
            color=style["color"],
            marker=style["marker"],
            linestyle="none",
        )
    limit = tokens * float(np.finfo(np.float32).eps)
    spectra.axhline(limit, color="0.35", linestyle=":")
    spectra.annotate(
        "below: zero in float32", (tokens, limit), (-4, 4), ha="right", color="0.35", **POINTS
    )
    spectra.axvline(head_dim, color="0.35", linestyle="-.", linewidth=1)
    spectra.annotate(f"d = {head_dim}", (head_dim, 0.25), (4, 0), color="0.35", **POINTS)
    spectra.set(
        title="singular values, mean of the heads",
        xlabel="index of the singular value",
        ylabel="share of the largest",
        yscale="log",
        ylim=(1e-10, 2),
        xlim=(0, tokens),
    )
    ranks.axhline(head_dim, color="0.35", linestyle="-.", linewidth=1)
    for rank, text, lift in (
        (head_dim, f"d = {head_dim}: the most without DWC or softmax", 3),
        (tokens, f"N = {tokens}: full rank", -16),
    ):
        ranks.annotate(text, (len(heads), rank), (0, lift), ha="right", color="0.35", **POINTS)
    ranks.axhline(tokens, color="0.35", linewidth=1)
    ranks.set(
        title="numerical rank of each head's map",
        xlabel="head",
        ylabel="rank",
        ylim=(0, tokens * 1.1),
        xticks=range(1, len(heads) + 1),
    )
    for axis in axes:
        axis.grid(alpha=0.3)
    handles = [Line2D([], [], label=LABELS[name], **style) for name, style in STYLES.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    save(figure, path)


def plot_cost(figures: Mapping[str, Any], path: Path) -> None:
    """Measured time and counted operations over the number of tokens, both axes logarithmic."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    names = {"softmax": ("softmax attention", "softmax"), "fla": ("FLA, exported form", "focused")}
    for form, (name, style_of) in names.items():
        style = STYLES[style_of]
        measured = [each for each in figures["points"] if "ms" in each[form]]
        draw_times(axes[0], figures, measured, form, name, style)
        tokens = [each["tokens"] for each in figures["points"]]
        gflops = [each[form]["gflops"] for each in figures["points"]]
        axes[1].plot(tokens, gflops, label=name, **style)
    since = f"{figures['fit_from_tokens']:,}"
    axes[0].set(title=f"time of one map; lines: fit from {since} tokens on", ylabel="milliseconds")
    axes[1].set(title="operations of the products, counted", ylabel="GFLOPs")
    for axis in axes:
        axis.set(xscale="log", yscale="log", xlabel="tokens N")
        axis.set_xticks([100, 400, 1600, 6400, 25600], ["100", "400", "1,600", "6,400", "25,600"])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(loc="upper left", frameon=False)
    save(figure, path)


def draw_times(
    axis: Axes,
    figures: Mapping[str, Any],
    measured: list[Any],
    form: str,
    name: str,
    style: Mapping[str, Any],
) -> None:
    """One form's times, their range over rounds, and the fitted line where it was fitted."""
    tokens = np.array([each["tokens"] for each in measured], np.float64)
    times = np.array([each[form]["ms"] for each in measured])
    spread = [
        times - [each[form]["low_ms"] for each in measured],
        [each[form]["high_ms"] for each in measured] - times,
    ]
    exponent, whole = (figures["exponents"][form][fit] for fit in ("asymptotic", "whole"))
    fitted = tokens >= figures["fit_from_tokens"]
    label = name
    if exponent is not None:
        label += f": $N^{{{exponent:.2f}}}$ (all sizes: $N^{{{whole:.2f}}}$)"
    axis.errorbar(
        tokens,
        times,
        spread,
        color=style["color"],
        marker=style["marker"],
        linestyle="none",
        capsize=2,
        label=label,
    )
    if exponent is not None:
        level = np.exp(np.mean(np.log(times[fitted]) - exponent * np.log(tokens[fitted])))
        axis.plot(tokens[fitted], level * tokens[fitted] ** exponent, color=style["color"])


def save(figure: Any, path: Path) -> None:
    """Writes a PNG and lets go of the figure."""
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
