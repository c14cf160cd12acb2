"""The figures as one image: bars by case, and latency over the offered rate."""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

from benchmarks.serving.report import by_round

OURS, LIMIT, OTHERS = "#0b6e4f", "#c9a227", "#8d99ae"
CURVES = (OURS, "#c1121f", "#457b9d")


def draw(figures: Mapping[str, Any], path: Path) -> None:
    """Writes the plot; `figures` as `report.page` takes them."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    cases, rows, curve = figures["cases"], figures["rows"], figures["curve"]
    panels = len(cases) + bool(curve)
    columns = 2 if panels > 1 else 1
    figure, axes = plt.subplots(
        -(-panels // columns), columns, figsize=(11, 3.2 * -(-panels // columns)), squeeze=False
    )
    for axis in axes.flat[panels:]:
        axis.axis("off")
    for axis, case in zip(axes.flat, cases, strict=False):
        of = "p50_ms" if case["clients"] == 1 else "images_per_s"
        names = dict.fromkeys(row["name"] for row in rows if row["case"] == case["name"])
        values = {name: list(by_round(rows, case["name"], name, of).values()) for name in names}
        bars = {name: each for name, each in values.items() if each}
        medians = [statistics.median(each) for each in bars.values()]
        spread = [
            [middle - min(each) for middle, each in zip(medians, bars.values(), strict=True)],
            [max(each) - middle for middle, each in zip(medians, bars.values(), strict=True)],
        ]
        axis.barh(list(bars), medians, xerr=spread, color=[_color(name) for name in bars])
        axis.invert_yaxis()
        axis.set_title(case["title"], fontsize=9)
        axis.set_xlabel("median latency, ms" if of == "p50_ms" else "images/s", fontsize=8)
        axis.tick_params(labelsize=8)
    if curve:
        axis = axes.flat[len(cases)]
        for name, color in zip(dict.fromkeys(row["name"] for row in curve), CURVES, strict=False):
            mine = [row for row in curve if row["name"] == name and row["p50_ms"] is not None]
            offered = [row["offered_per_s"] for row in mine]
            for each, style in (("p50", "-"), ("p99", ":")):
                waits = [row[f"{each}_ms"] for row in mine]
                axis.plot(offered, waits, style, color=color, label=f"{name}, {each}")
        axis.set_title("open loop: latency over the offered rate", fontsize=9)
        axis.set_xlabel("offered images/s", fontsize=8)
        axis.set_ylabel("ms", fontsize=8)
        axis.set_yscale("log")
        axis.tick_params(labelsize=8)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)


def _color(name: str) -> str:
    return OURS if name.startswith("ours") else LIMIT if name.startswith("limit") else OTHERS
