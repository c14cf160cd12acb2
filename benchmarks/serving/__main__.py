"""The server against its limit and against others, as ratios within one run.

    .venv/bin/python -m benchmarks.serving --images DATA/bccd/images/val --output docs

One contestant runs at a time. In every round all of a case take turns, in another order. Writes
OUTPUT/serving-benchmark.md and, beside it, evidence/serving.json and evidence/serving.png. Each
peer gets an environment of its own, made at the first call; the tutorial form's takes 6 GB, and
--tutorial-python .venv/bin/python spares it. 15 minutes on two CPUs that do nothing else;
--rounds 1 --seconds 2 --cases saturated --peers mosec is a trial.
"""

import argparse
import datetime
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import onnx

from benchmarks.figures_file import write_figures
from benchmarks.load.contestants import PEERS
from benchmarks.load.envs import ROOT
from benchmarks.serving.cases import Case, Models, cases
from benchmarks.serving.measure import Bench, Row, shapes
from benchmarks.serving.plot import draw
from benchmarks.serving.report import by_round, claims, claims_table, page
from benchmarks.serving.sample_images import read_images, widened
from export.stamp import write
from server.host import available_cpus, cpu_name
from server.inference.artifact import read_metadata

CURVE = (0.3, 0.5, 0.7, 0.8, 0.9, 1.0)  # of the saturated rate
WEIGHTS = ROOT / "weights"


def main() -> None:
    """Measures, writes, and prints the ratios."""
    arguments = _parser().parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models = Models(
            fp32=arguments.fp32,
            square=square_only(arguments.fp32, Path(folder) / "square.onnx"),
            int8=arguments.int8 if arguments.int8.exists() else None,
            checkpoint=arguments.checkpoint,
        )
        if models.int8 is None:
            print(f"{arguments.int8} is missing: no figures of int8", file=sys.stderr)
        figures = run(arguments, models)
    write_results(figures, arguments.output)
    print(claims_table(claims(figures["rows"])))


def run(arguments: argparse.Namespace, models: Models) -> dict[str, Any]:
    """All rounds of all cases, then the open-loop curve of ours."""
    photos = read_images(arguments.images, arguments.most_images)
    bench = Bench(
        photos,
        [widened(photo) for photo in photos],
        arguments.seconds,
        arguments.warm_s,
        arguments.envs,
        arguments.python,
        arguments.tutorial_python,
    )
    chosen = [
        case
        for case in cases(models, arguments.peers, arguments.clients)
        if case.name in arguments.cases
    ]
    about = metadata(arguments, models, len(photos))
    described = [describe(case, bench) for case in chosen]
    rows: list[Row] = []
    for i in range(arguments.rounds):
        for case in chosen:
            rows += one_round(bench, case, i, models.fp32)
    curve: list[Row] = []
    for case in chosen:
        for entry in case.entries:
            rates = by_round(rows, case.name, entry.name, "images_per_s").values()
            if case.name == "saturated" and entry.kind == "ours" and rates:
                offered = [share * median(rates) for share in CURVE]
                curve += bench.curve(case, entry, offered)
    return {"metadata": about, "cases": described, "rows": rows, "curve": curve}


def one_round(bench: Bench, case: Case, i: int, reference: Path) -> list[Row]:
    """One window for each of a case, each time beginning with another."""
    first = i % len(case.entries)
    rows = []
    for entry in case.entries[first:] + case.entries[:first]:
        began = time.perf_counter()
        row = bench.row(case, entry, reference)
        rows.append({"round": i, "case": case.name, "name": entry.name} | row)
        shown = row.get("failed") or " ".join(
            f"{figure}={row[figure]:.1f}" for figure in ("images_per_s", "p50_ms") if figure in row
        )
        wrong = f" WRONG {row['wrong']}" if row.get("wrong") else ""
        took_s = time.perf_counter() - began
        print(f"{i} {case.name} {entry.name}: {shown}{wrong} [{took_s:.0f} s]", file=sys.stderr)
    return rows


def write_results(figures: dict[str, Any], folder: Path) -> None:
    """The page, and beside it what it shows."""
    evidence = folder / "evidence"
    evidence.mkdir(parents=True, exist_ok=True)
    write_figures(figures, evidence / "serving.json")
    draw(figures, evidence / "serving.png")
    (folder / "serving-benchmark.md").write_text(page(figures), encoding="utf-8")


def square_only(artifact: Path, path: Path) -> Path:
    """A copy of an artifact that serves its largest bucket alone; returns `path`."""
    described = read_metadata(artifact)
    square = described.model_copy(update={"buckets": (described.input_hw,)})
    write(onnx.load(artifact), square, path)
    return path


def describe(case: Case, bench: Bench) -> dict[str, Any]:
    """A case as the page needs it, with the shapes that each model infers its images at."""
    images = bench.wide if case.wide else bench.photos
    by_entry = {
        entry.name: shapes(entry.model, images)
        for entry in case.entries
        if entry.kind != "tutorial"
    }
    if len({json.dumps(each) for each in by_entry.values()}) == 1:
        by_entry = {"all": next(iter(by_entry.values()))}
    texts = [
        f"{name}: " + ", ".join(f"{count} at {shape}" for shape, count in each.items())
        for name, each in by_entry.items()
    ]
    return {
        "name": case.name,
        "title": case.title,
        "clients": case.clients,
        "thresholds": asdict(case.thresholds),
        "shapes": "; ".join(texts),
    }


def metadata(arguments: argparse.Namespace, models: Models, images: int) -> dict[str, Any]:
    """What the figures hold for."""
    packages = ("onnxruntime", "numpy", "fastapi", "uvicorn", "uvloop", "httptools")
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpu": cpu_name(),
        "cpus": available_cpus(),
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
        "warm_s": arguments.warm_s,
        "clients": arguments.clients,
        "images": images,
        "peers": list(arguments.peers),
        "models": {
            "fp32": read_metadata(models.fp32).name,
            "int8": read_metadata(models.int8).name if models.int8 else None,
        },
        "versions": {name: version(name) for name in packages} | {"opencv": cv2.__version__},
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    names = ("saturated", "wide", "many_boxes", "lone")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each window")
    parser.add_argument("--warm-s", type=float, default=1.2, help="before each window")
    parser.add_argument("--cases", type=_some_of(names), default=names, help=",".join(names))
    parser.add_argument("--peers", type=_some_of(PEERS), default=PEERS, help=",".join(PEERS))
    parser.add_argument("--images", type=Path, default=ROOT / "samples", help="640 x 480 JPEGs")
    parser.add_argument("--most-images", type=int, default=32)
    parser.add_argument("--fp32", type=Path, default=WEIGHTS / "yolov8n-fla-bccd.onnx")
    parser.add_argument("--int8", type=Path, default=WEIGHTS / "yolov8n-fla-bccd-int8.onnx")
    parser.add_argument("--checkpoint", type=Path, default=WEIGHTS / "yolov8n-fla-bccd.pt")
    parser.add_argument("--envs", type=Path, default=ROOT / "runs" / "peers")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "serving")
    parser.add_argument("--python", default=sys.executable, help="runs our server and the limit")
    parser.add_argument("--tutorial-python", type=Path, help="one that has ultralytics")
    return parser


def _some_of(known: Sequence[str]) -> Any:
    def parse(text: str) -> tuple[str, ...]:
        chosen = tuple(filter(None, text.split(",")))
        if unknown := set(chosen) - set(known):
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}")
        return chosen

    return parse


if __name__ == "__main__":
    main()
