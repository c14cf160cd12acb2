"""The ablation in words and as a plot; every figure comes from what was measured."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

from benchmarks.attention.page import listed, table, wrapped

COMMAND = ".venv/bin/python -m benchmarks.attention.ablation --data DATA/bccd/data.yaml"
# Okabe and Ito's palette, which colour-blind readers can tell apart; colour, marker, line style.
STYLES = (("#D55E00", "s", "-"), ("#0072B2", "o", "--"), ("#009E73", "^", ":"))
LEAST_SPAN = 10.0  # points on the axis of the results: a finer scale would make chance look large

Figures = Mapping[str, Any]


def page(figures: Figures, architectures: Sequence[str]) -> str:
    """The page as Markdown.

    Args:
        figures: as `benchmarks.attention.ablation` writes them.
        architectures: in the table's order; the first is the baseline.
    """
    return "\n\n".join(wrapped(part) for part in parts(figures, architectures)) + "\n"


def parts(figures: Figures, architectures: Sequence[str]) -> Iterable[str]:
    """Its paragraphs, tables and titles."""
    seeds = figures["seeds"]
    command = f"{COMMAND} --seeds {','.join(map(str, seeds))}"
    images = figures["images"]
    yield "# Does the attention help? YOLOv8n with and without it"
    yield f"""This page is written by `{command}`; its figures are what that command measured, raw
        in [evidence/ablation.json](evidence/ablation.json)."""
    yield f"""Three networks, trained alike ([recipe](../benchmarks/attention/ablation.yaml)): from
        random weights, {figures["epochs"]} epochs at {figures["imgsz"]} px, on the
        {images["train"]} real images of BCCD's training set, with {listed_seeds(seeds)}.
        `yolov8n-fla` has one focused linear attention behind SPPF, as a residual; `yolov8n-c2f-fla`
        has one in each bottleneck of the neck. The recipe was made for `yolov8n-fla` and tuned for
        none of the others."""
    if figures["missing"]:
        yield f"**Not there yet:** {', '.join(figures['missing'])}."
    yield "## Accuracy"
    yield "![Validation over epochs, and final accuracy](evidence/ablation.png)"
    yield accuracy_table(figures, architectures, seeds)
    yield f"""COCO's mAP in points (0 to 100) on the {images["val"]} validation images, through
        the artifact and the code that serves it. Spread is the largest less the smallest seed. The
        epoch with the best validation accuracy was kept, so all figures are a little too good,
        alike."""
    yield verdict(figures, architectures)
    yield "## Cost"
    yield cost_table(figures, architectures)
    machine = figures["machine"]
    yield f"""GFLOPs of one square image of {figures["imgsz"]} px, two a multiply-add, counted on
        the operators that run. Latency of the session that serves, one image in its bucket, ONNX
        Runtime {machine["onnxruntime"]} on a CPU ({machine["processor"]}, threads:
        {figures["threads"]}); the networks took turns, median of {figures["rounds"]} runs."""
    yield prices(figures, architectures)


def listed_seeds(seeds: Sequence[int]) -> str:
    """The number of seeds in words."""
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {listed(seeds)}"


def points(figures: Figures, arch: str, figure: str = "map50_95") -> dict[int, float]:
    """One architecture's mAP in points (0 to 100), by seed."""
    return {run["seed"]: 100 * run[figure] for run in figures["runs"] if run["arch"] == arch}


def spread(values: Iterable[float]) -> float:
    """The largest less the smallest."""
    values = list(values)
    return max(values) - min(values)


def accuracy_table(figures: Figures, architectures: Sequence[str], seeds: Sequence[int]) -> str:
    """A row an architecture; a dash for what is missing."""
    rows = []
    for arch in architectures:
        own, map50 = points(figures, arch), points(figures, arch, "map50")
        cells = [arch, *(f"{own[seed]:.1f}" if seed in own else "–" for seed in seeds)]
        cells += [f"**{mean(own.values()):.1f}**"] if own else ["–"]
        cells += [f"{spread(own.values()):.1f}"] if len(own) > 1 else ["–"]
        cells += [f"{mean(map50.values()):.1f}"] if map50 else ["–"]
        rows.append(cells)
    head = ["mAP50-95", *(f"seed {seed}" for seed in seeds), "mean", "spread", "mAP50, mean"]
    return table(head, rows)


def verdict(figures: Figures, architectures: Sequence[str]) -> str:
    """Who is ahead, and whether that is more than seeds differ."""
    measured = {arch: own for arch in architectures if (own := points(figures, arch))}
    first = architectures[0]
    if first not in measured or len(measured) == 1:
        return "There is nothing to compare yet."
    sentences = []
    if shared := sorted(set.intersection(*(set(own) for own in measured.values()))):
        best = max(measured, key=lambda arch: mean(measured[arch][seed] for seed in shared))
        sentences.append(f"The best mean with {listed_seeds(shared)} is that of {best}.")
    sentences += [compared(arch, own, measured) for arch, own in measured.items() if arch != first]
    count = len(measured[first])
    sentences.append(
        f"{count} seed{'s' if count > 1 else ''} and {figures['images']['val']} images of one "
        "data set can't show that a small difference is real, and say nothing about more data, "
        "larger images or pretrained weights."
    )
    return " ".join(sentences)


def compared(
    arch: str, own: Mapping[int, float], measured: Mapping[str, Mapping[int, float]]
) -> str:
    """One architecture against the first, on the seeds that both have."""
    first, baseline = next(iter(measured.items()))
    shared = sorted(own.keys() & baseline.keys())
    if not shared:
        return f"{arch} has no seed in common with {first}."
    gains = [own[seed] - baseline[seed] for seed in shared]
    gain = mean(gains)
    sentence = (
        f"{arch} is {abs(gain):.1f} points {'above' if gain >= 0 else 'below'} {first} "
        f"with {listed_seeds(shared)}"
    )
    if len(shared) == 1:
        return f"{sentence}: one seed, so even the sign may be chance."
    noise = max(spread(values[seed] for seed in shared) for values in (own, baseline))
    if abs(gain) <= noise:
        return (
            f"{sentence}; seeds of one of the two differ by {noise:.1f}, so these runs don't tell "
            "them apart."
        )
    same_sign = min(gains) > 0 or max(gains) < 0
    return (
        f"{sentence}, more than the {noise:.1f} by which seeds of one of the two differ, and "
        f"{'of the same sign with every seed: a hint' if same_sign else 'yet not with every seed'}."
    )


def cost_table(figures: Figures, architectures: Sequence[str]) -> str:
    """Parameters, operations and latency of the architectures that were measured."""
    known = figures["architectures"]
    rows = [
        [arch, f"{own['parameters']:,}"] + [f"{own[key]:.2f}" for key in ("gflops", "ms", "ratio")]
        for arch in architectures
        if (own := known.get(arch))
    ]
    return table(["", "parameters", "GFLOPs", "latency, ms", "latency ratio"], rows)


def prices(figures: Figures, architectures: Sequence[str]) -> str:
    """What each costs over the baseline."""
    known = figures["architectures"]
    baseline = known.get(architectures[0])
    if baseline is None:
        return f"The ratios are to {next(iter(known))}; {architectures[0]} is missing."
    texts = [
        f"{arch} has {percent(known[arch]['parameters'], baseline['parameters'])} parameters, "
        f"{percent(known[arch]['gflops'], baseline['gflops'])} operations and "
        f"{percent(known[arch]['ratio'], 1)} time"
        for arch in architectures[1:]
        if arch in known
    ]
    return f"Against {architectures[0]}, {'; '.join(texts)}." if texts else ""


def percent(value: float, reference: float) -> str:
    """The difference to a reference: "13 % more"."""
    change = round(100 * (value / reference - 1))
    return f"{abs(change)} % {'less' if change < 0 else 'more'}"


def plot(figures: Figures, architectures: Sequence[str], path: Path) -> None:
    """Validation over the epochs of every run, and the accuracy of each as served."""
    figure, (curves, finals) = plt.subplots(
        1, 2, figsize=(10, 4), layout="constrained", width_ratios=(3, 2)
    )
    for arch, (colour, marker, line) in zip(architectures, STYLES, strict=True):
        runs = [run for run in figures["runs"] if run["arch"] == arch]
        for number, run in enumerate(runs):
            epochs = range(1, len(run["curve"]["map50_95"]) + 1)
            values = [100 * value for value in run["curve"]["map50_95"]]
            label = arch if number == 0 else None
            curves.plot(epochs, values, line, color=colour, linewidth=1.3, label=label)
        place = architectures.index(arch)
        served = [100 * run["map50_95"] for run in runs]
        finals.plot([place] * len(served), served, marker, color=colour)
        if served:
            finals.hlines(mean(served), place - 0.25, place + 0.25, color=colour)
            finals.annotate(
                f"{mean(served):.1f}",
                (place + 0.27, mean(served)),
                color=colour,
                va="center",
                fontsize=9,
            )
    curves.set(title="during training (ultralytics' own figure)", xlabel="epoch")
    curves.set_ylabel("mAP50-95, points")
    curves.set_ylim(0)
    curves.legend(loc="lower right", frameon=False)
    finals.set(title="as served; bar: mean of the seeds", xlim=(-0.5, len(architectures) - 0.2))
    finals.set_ylabel("mAP50-95, points")
    finals.set_xticks(range(len(architectures)), architectures)
    served = [100 * run["map50_95"] for run in figures["runs"]]
    middle = (max(served) + min(served)) / 2
    half = max(LEAST_SPAN, 1.5 * spread(served)) / 2
    finals.set_ylim(middle - half, middle + half)
    for axis in (curves, finals):
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=130)
    plt.close(figure)
