"""Does the attention help? YOLOv8n with and without it, same recipe, several seeds.

    python -m benchmarks.attention.ablation --data DATA/bccd/data.yaml [--seeds 0,1,2] [--no-train]

Trains what is missing under RUNS/{arch}-seed{n}, an interrupted training from where it stopped;
exports and measures what is there; writes OUTPUT/ablation.md and, beside it, evidence/ablation.json
and evidence/ablation.png. Times want a machine that does nothing else.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks.figures_file import write_figures
from model.environment import contain_ultralytics
from server.host import available_cpus

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = ("yolov8n", "yolov8n-fla", "yolov8n-c2f-fla")  # the first is the baseline
RECIPE = Path(__file__).with_name("ablation.yaml")


def main(argv: list[str] | None = None) -> None:
    """Runs what the command line asks for."""
    arguments = parser().parse_args(argv)
    contain_ultralytics()  # before what imports it
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    from benchmarks.attention.ablation_measure import check_recipe, measure, stages_of, train_run
    from benchmarks.attention.ablation_page import page, plot
    from benchmarks.attention.cost import machine

    wanted = runs_of(arguments.runs, arguments.seeds)
    if not arguments.no_train:
        for (arch, seed), folder in wanted.items():
            if not (folder / "best.pt").exists():
                train_run(folder, arch, seed, arguments.data, RECIPE)

    finished = {run: folder for run, folder in wanted.items() if (folder / "best.pt").exists()}
    if not finished:
        raise SystemExit(f"{arguments.runs}: no finished run of {', '.join(ARCHITECTURES)} in it")
    stages = stages_of(RECIPE)
    try:
        for (_, seed), folder in finished.items():
            check_recipe(folder, seed, stages)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    imgsz = stages[-1]["imgsz"]
    figures = {
        "machine": machine(),
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "imgsz": imgsz,
        "seeds": arguments.seeds,
        "epochs": sum(stage["epochs"] for stage in stages),
        "missing": [folder.name for run, folder in wanted.items() if run not in finished],
        **measure(finished, arguments.data, imgsz, arguments.rounds, arguments.threads),
    }
    folder = arguments.output / "evidence"
    folder.mkdir(parents=True, exist_ok=True)
    write_figures(figures, folder / "ablation.json")
    plot(figures, ARCHITECTURES, folder / "ablation.png")
    (arguments.output / "ablation.md").write_text(page(figures, ARCHITECTURES))
    print(arguments.output / "ablation.md")


def runs_of(folder: Path, seeds: Sequence[int]) -> dict[tuple[str, int], Path]:
    """The folder of each run by (architecture, seed), one seed of every architecture first."""
    return {(arch, seed): folder / f"{arch}-seed{seed}" for seed in seeds for arch in ARCHITECTURES}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attention.ablation", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--data", type=Path, required=True, help="the data set's data.yaml")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "ablation")
    parser.add_argument("--output", type=Path, default=ROOT / "docs", help="folder of the page")
    parser.add_argument("--seeds", type=seed_list, default=[0, 1], help="e.g. 0,1,2")
    parser.add_argument("--no-train", action="store_true", help="measure only what is there")
    parser.add_argument("--rounds", type=int, default=200, help="of the latency")
    parser.add_argument("--threads", type=int, default=available_cpus(), help="of ONNX Runtime")
    return parser


def seed_list(text: str) -> list[int]:
    """Seeds from `0,1,2`, each once."""
    return list(dict.fromkeys(int(seed) for seed in text.split(",")))


if __name__ == "__main__":
    main()
