"""python -m model: convert, train, val, predict, info."""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from model.environment import contain_ultralytics
from model.errors import missing_library

PROG = "python -m model"


def main(argv: list[str] | None = None, prog: str = PROG) -> int:
    """Runs one command; returns the exit code: 0, 2 for what the user can mend, 130 for Ctrl-C.

    Args:
        argv: the arguments; default: the process'.
        prog: what stands before them, for help and messages.
    """
    contain_ultralytics()

    arguments = parser(prog).parse_args(argv)
    command = f"{prog} {arguments.command}"
    try:
        import yaml

        arguments.run(arguments)
    except ModuleNotFoundError as error:
        print(f"{command}: {missing_library(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{command}: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, yaml.YAMLError) as error:
        line = " ".join(re.sub(r"\x1b\[[\d;]*m", "", str(error)).split())  # without its colours
        print(f"{command}: {line}", file=sys.stderr)
        return 2
    return 0


def parser(prog: str) -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(prog=prog, description=__doc__)
    commands = root.add_subparsers(dest="command", required=True)

    add_convert(commands)
    add_train(commands)
    add_val(commands)
    add_predict(commands)

    info = commands.add_parser("info", help="layers, parameters and GFLOPs beside plain YOLOv8")
    info.add_argument("--arch", default="yolov8n-fla")
    info.add_argument("--imgsz", type=int, default=640, help="pixels, a multiple of 32")
    info.set_defaults(run=run_info)
    return root


def add_convert(commands: Any) -> None:
    """`convert`."""
    convert = commands.add_parser(
        "convert", help="COCO JSON, Pascal VOC XML or CSV into a YOLO-form data set"
    )
    convert.add_argument(
        "source", type=Path, help="annotations: a .json, a .csv, or a folder of .xml"
    )
    convert.add_argument("--images", type=Path, required=True, help="folder with the images")
    convert.add_argument("--output", type=Path, required=True, help="folder of the data set")
    convert.add_argument(
        "--from", dest="form", choices=("coco", "voc", "csv"), help="default: by the source"
    )
    convert.add_argument(
        "--val",
        type=Path,
        metavar="ANNOTATIONS",
        help="keep a split: the source is for training, these (in the same form) for validation",
    )
    convert.add_argument(
        "--val-images", type=Path, metavar="FOLDER", help="images of --val; default: --images"
    )
    convert.add_argument(
        "--val-fraction", type=float, help="without --val: share of images for validation (0.2)"
    )
    convert.add_argument("--seed", type=int, default=0, help="of the split (0)")
    convert.add_argument("--link", action="store_true", help="link to the images, not copy them")
    convert.add_argument(
        "--skip-difficult", action="store_true", help="leave out VOC's difficult objects"
    )
    convert.add_argument("--force", action="store_true", help="replace a data set in the output")
    convert.set_defaults(run=run_convert)


def add_train(commands: Any) -> None:
    """`train`."""
    train = commands.add_parser("train", help="train an architecture on a YOLO-form data set")
    train.add_argument(
        "--arch",
        default="yolov8n-fla",
        help="e.g. yolov8n-fla, yolov8s-c2f-fla, or a YAML of your own",
    )
    train.add_argument("--data", type=Path, required=True, help="the data set's YAML")
    train.add_argument("--output", type=Path, default=Path("runs/train"), help="folder of the run")
    train.add_argument(
        "--recipe",
        type=Path,
        help="YAML with a list `stages` of ultralytics' training arguments; "
        "the options below override each of its stages",
    )
    train.add_argument(
        "--pretrained", type=Path, help="start from the layers of this .pt, e.g. yolov8n.pt"
    )
    train.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    train.add_argument("--epochs", type=int)
    train.add_argument("--imgsz", type=int, help="pixels, a multiple of 32")
    train.add_argument("--batch", type=int)
    train.add_argument("--seed", type=int)
    train.add_argument("--device", help="cpu, 0, 0,1, ...")
    train.set_defaults(run=run_train)


def add_val(commands: Any) -> None:
    """`val`."""
    val = commands.add_parser("val", help="accuracy of a checkpoint on a YOLO-form data set")
    val.add_argument("checkpoint", type=Path)
    val.add_argument("--data", type=Path, required=True, help="the data set's YAML")
    val.add_argument("--imgsz", type=int, help="pixels, a multiple of 32; default: as trained")
    val.add_argument("--split", choices=("train", "val", "test"), default="val")
    val.add_argument("--batch", type=int, default=16)
    val.add_argument("--device", help="cpu, 0, ...")
    val.set_defaults(run=run_val)


def add_predict(commands: Any) -> None:
    """`predict`."""
    predict = commands.add_parser("predict", help="draw a checkpoint's detections into images")
    predict.add_argument("checkpoint", type=Path)
    predict.add_argument("images", type=Path, nargs="+", help="images, or folders of them")
    predict.add_argument("--output", type=Path, default=Path("runs/predict"), help="folder")
    predict.add_argument("--imgsz", type=int, help="pixels, a multiple of 32; default: as trained")
    predict.add_argument("--conf", type=float, default=0.25, help="least score (0.25)")
    predict.add_argument("--iou", type=float, default=0.7, help="most overlap of two boxes (0.7)")
    predict.add_argument("--device", help="cpu, 0, ...")
    predict.add_argument("--save-txt", action="store_true", help="also labels in YOLO form")
    predict.add_argument("--save-json", action="store_true", help="also detections.json")
    predict.add_argument("--force", action="store_true", help="write into a folder that has files")
    predict.set_defaults(run=run_predict)


def options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a command is called with; its function's parameters have the same names."""
    return {k: v for k, v in vars(arguments).items() if k not in ("command", "run")}


def run_convert(arguments: argparse.Namespace) -> None:
    """`convert`: prints a summary, last the data set's YAML."""
    from model.convert.convert import convert

    print(convert(**options(arguments)))


def run_train(arguments: argparse.Namespace) -> None:
    """`train`: prints where the checkpoint is."""
    import yaml

    from model.train import train

    stages: list[dict[str, Any]] = [{}]
    if arguments.recipe:
        recipe = yaml.safe_load(arguments.recipe.read_text())
        stages = recipe.get("stages", []) if isinstance(recipe, dict) else []
    overrides = {
        name: getattr(arguments, name)
        for name in ("epochs", "imgsz", "batch", "seed", "device")
        if getattr(arguments, name) is not None
    }
    best = train(
        arguments.arch,
        arguments.data,
        [stage | overrides for stage in stages],
        arguments.output,
        pretrained=arguments.pretrained,
        resume=arguments.resume,
    )
    print(best)


def run_val(arguments: argparse.Namespace) -> None:
    """`val`: prints the table."""
    from model.val import validate

    print(validate(**options(arguments)))


def run_predict(arguments: argparse.Namespace) -> None:
    """`predict`: prints what was found in each image, last where the images are."""
    from model.predict import predict

    print("\n".join(predict(**options(arguments))))


def run_info(arguments: argparse.Namespace) -> None:
    """`info`: prints the table."""
    from model.info import comparison

    print(comparison(**options(arguments)))


if __name__ == "__main__":
    sys.exit(main())
