"""Measures the three claims of focused linear attention; writes plots, figures and a page.

    python -m benchmarks.attention [--only focus|diversity|cost]

OUTPUT/evidence/{focus,diversity,cost}.json keep what was measured; the page
OUTPUT/focused-linear-attention.md is always written anew from all three.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from benchmarks.figures_file import write_figures
from model.environment import contain_ultralytics

ROOT = Path(__file__).resolve().parents[2]
CLAIMS = ("focus", "diversity", "cost")
FOCUS_IMGSZ = 480  # what the default weights were trained and are served at
DIVERSITY_IMGSZ = 640  # at 480 there are as few as 135 tokens; a rank of 32 should be a small part
GAUSSIAN_SEEDS = 3


def main(argv: list[str] | None = None) -> None:
    """Runs what the command line asks for."""
    arguments = parser().parse_args(argv)
    contain_ultralytics()  # before export is imported
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    from benchmarks.attention.page import page

    folder: Path = arguments.output / "evidence"
    folder.mkdir(parents=True, exist_ok=True)
    measure = {"focus": focus, "diversity": diversity, "cost": cost}
    for claim in [arguments.only] if arguments.only else CLAIMS:
        figures = measure[claim](arguments, folder)
        write_figures(figures, folder / f"{claim}.json")
        print(f"{claim}: {folder / claim}.json", flush=True)
    known = {
        claim: json.loads(path.read_text()) if (path := folder / f"{claim}.json").exists() else None
        for claim in CLAIMS
    }
    written = arguments.output / "focused-linear-attention.md"
    written.write_text(page(known))
    print(written)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attention", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--only", choices=CLAIMS, help="measure this one, keep the others' figures")
    parser.add_argument("--output", type=Path, default=ROOT / "docs", help="folder of the page")
    parser.add_argument(
        "--weights", type=Path, default=ROOT / "weights" / "yolov8n-fla-bccd.pt", help="checkpoint"
    )
    timing = parser.add_argument_group("cost; on a machine that does nothing else")
    timing.add_argument("--threads", type=int, default=1)
    timing.add_argument("--rounds", type=int, default=7)
    timing.add_argument("--dim", type=int, default=64, help="channels")
    timing.add_argument("--heads", type=int, default=2)
    timing.add_argument("--most-tokens", type=int, default=25_600)
    timing.add_argument(
        "--memory-gb",
        type=float,
        help="skip softmax where one head's map needs more; by default 80 %% of what is free",
    )
    return parser


def focus(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Claim (a)."""
    from benchmarks.attention.focus import measure_focus
    from benchmarks.attention.plots import plot_focus, plot_rows
    from benchmarks.attention.trained import gaussian_tokens, trained_tokens

    tokens = trained_tokens(arguments.weights, sample_images(), FOCUS_IMGSZ)
    figures = {
        "imgsz": FOCUS_IMGSZ,
        "trained": measure_focus(tokens),
        "gaussian": measure_focus([gaussian_tokens(seed) for seed in range(GAUSSIAN_SEEDS)]),
    }
    plot_focus(figures, folder / "focus.png")
    plot_rows(tokens[0], token_on_white_cell(tokens[0]), folder / "attention_rows.png")
    return figures


def diversity(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Claim (b)."""
    from benchmarks.attention.diversity import measure_diversity
    from benchmarks.attention.plots import plot_diversity
    from benchmarks.attention.trained import trained_tokens

    tokens = trained_tokens(arguments.weights, sample_images(), DIVERSITY_IMGSZ)
    figures = {"imgsz": DIVERSITY_IMGSZ, **measure_diversity(tokens)}
    plot_diversity(figures, folder / "diversity.png")
    return figures


def cost(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Claim (c)."""
    from benchmarks.attention.cost import SIDES, available_gigabytes, measure_cost
    from benchmarks.attention.plots import plot_cost

    memory_gb = arguments.memory_gb or 0.8 * available_gigabytes()
    figures = measure_cost(
        [side for side in SIDES if side * side <= arguments.most_tokens],
        arguments.dim,
        arguments.heads,
        arguments.threads,
        arguments.rounds,
        memory_gb,
        report=lambda line: print(line, flush=True),
    )
    plot_cost(figures, folder / "cost.png")
    return figures


def sample_images() -> list[Path]:
    """The rendered smears of the repository."""
    return sorted((ROOT / "samples").glob("*.jpg"))


def token_on_white_cell(tokens: Any) -> tuple[int, int]:
    """(row, column) of the token at the centre of the image's first white cell."""
    cells = json.loads((ROOT / "samples" / "smears.json").read_text())[f"{tokens.name}.jpg"][
        "cells"
    ]
    x1, y1, x2, y2 = next(cell["box"] for cell in cells if cell["class_name"] == "WBC")
    placed, side = tokens.placed, tokens.canvas.shape[0] // tokens.map_hw[0]
    height, width = placed.original_hw
    y = placed.pad_top + (y1 + y2) / 2 * placed.resized_hw[0] / height
    x = placed.pad_left + (x1 + x2) / 2 * placed.resized_hw[1] / width
    return int(y) // side, int(x) // side


if __name__ == "__main__":
    main()
