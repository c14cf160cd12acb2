"""python -m model: train, info."""

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml

from model.environment import contain_ultralytics


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0, or 2 for what the user can mend."""
    contain_ultralytics()

    arguments = parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except (ValueError, OSError, yaml.YAMLError) as error:
        line = " ".join(str(error).split())
        print(f"python -m model {arguments.command}: {line}", file=sys.stderr)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(prog="python -m model", description=__doc__)
    commands = root.add_subparsers(dest="command", required=True)

    train = commands.add_parser("train", help="train an architecture on a YOLO-form data set")
    train.add_argument("--arch", default="yolov8n-fla", help="e.g. yolov8n-fla, yolov8s-c2f-fla")
    train.add_argument("--data", type=Path, required=True, help="the data set's YAML")
    train.add_argument("--output", type=Path, default=Path("runs/train"), help="folder of the run")
    train.add_argument(
        "--recipe",
        type=Path,
        help="YAML with a list `stages` of ultralytics' training arguments; "
        "the options below override each of its stages",
    )
    train.add_argument("--pretrained", type=Path, help="start from this checkpoint's layers")
    train.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    train.add_argument("--epochs", type=int)
    train.add_argument("--imgsz", type=int, help="pixels, a multiple of 32")
    train.add_argument("--batch", type=int)
    train.add_argument("--seed", type=int)
    train.add_argument("--device", help="cpu, 0, 0,1, ...")
    train.set_defaults(run=run_train)

    info = commands.add_parser("info", help="layers, parameters and GFLOPs beside plain YOLOv8")
    info.add_argument("--arch", default="yolov8n-fla")
    info.add_argument("--imgsz", type=int, default=640, help="pixels, a multiple of 32")
    info.set_defaults(run=run_info)
    return root


def run_train(arguments: argparse.Namespace) -> None:
    """`train`: prints where the checkpoint is."""
    from model.train import train

    stages: list[dict[str, Any]] = [{}]
    if arguments.recipe:
        recipe = yaml.safe_load(arguments.recipe.read_text())
        stages = recipe.get("stages", []) if isinstance(recipe, dict) else []
    given = {
        name: getattr(arguments, name)
        for name in ("epochs", "imgsz", "batch", "seed", "device")
        if getattr(arguments, name) is not None
    }
    best = train(
        arguments.arch,
        arguments.data,
        [stage | given for stage in stages],
        arguments.output,
        pretrained=arguments.pretrained,
        resume=arguments.resume,
    )
    print(best)


def run_info(arguments: argparse.Namespace) -> None:
    """`info`: prints the table."""
    from model.info import comparison

    print(comparison(arguments.arch, arguments.imgsz))


if __name__ == "__main__":
    sys.exit(main())
