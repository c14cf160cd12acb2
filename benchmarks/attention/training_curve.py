"""Accuracy over epochs of one or more runs of `python -m model train`, as a table and a plot.

    python -m benchmarks.attention.training_curve --csv curve.csv --png curve.png 'LABEL=runs/a' ...

Each run is a label and the folder that `--output` named; its stages follow one another.
"""

import argparse
import csv
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt


@dataclass(frozen=True)
class Point:
    """Validation of one epoch, at the image size of its stage."""

    run: str
    stage: int
    epoch: int
    map50: float
    map50_95: float


def read_run(label: str, folder: Path) -> list[Point]:
    """The epochs of all stages, numbered through.

    Raises:
        FileNotFoundError: there is no stage in the folder.
    """
    points: list[Point] = []
    for stage, results in enumerate(sorted(folder.glob("stage_*/results.csv")), 1):
        with results.open() as file:
            # Of an epoch that a resumed run repeated, the last row counts.
            rows = {row["epoch"]: row for row in csv.DictReader(file)}
        for row in rows.values():
            points.append(
                Point(
                    label,
                    stage,
                    len(points) + 1,
                    float(row["metrics/mAP50(B)"]),
                    float(row["metrics/mAP50-95(B)"]),
                )
            )
    if not points:
        raise FileNotFoundError(f"{folder}: no stage_*/results.csv in it")
    return points


def write_csv(points: list[Point], path: Path) -> None:
    """A row an epoch."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Point)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(point) for point in points)


def plot(points: list[Point], path: Path) -> None:
    """Both figures of every run over its epochs; a stage's first epoch is marked."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, figure_name, title in zip(
        axes, ("map50", "map50_95"), ("mAP50", "mAP50-95"), strict=True
    ):
        for label in dict.fromkeys(point.run for point in points):
            own = [point for point in points if point.run == label]
            epochs = [point.epoch for point in own]
            (line,) = axis.plot(epochs, [getattr(p, figure_name) for p in own], label=label)
            starts = [p for before, p in pairwise(own) if p.stage > before.stage]
            for start in starts:
                axis.axvline(start.epoch - 0.5, color=line.get_color(), linestyle=":")
        axis.set(title=f"{title}, real validation images", xlabel="epoch", ylim=(0, 1))
        axis.grid(alpha=0.3)
    axes[0].legend(loc="lower right")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Writes what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="LABEL=FOLDER")
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--png", type=Path, required=True)
    arguments = parser.parse_args()
    points: list[Point] = []
    for run in arguments.runs:
        label, _, folder = run.partition("=")
        points += read_run(label, Path(folder))
    write_csv(points, arguments.csv)
    plot(points, arguments.png)


if __name__ == "__main__":
    main()
