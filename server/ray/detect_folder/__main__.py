"""`python -m server.ray.detect_folder IN OUT.parquet`; docs/ray.md tells what it does."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from server.ray import RAY_MISSING, ray_is_there

if not ray_is_there():
    print(RAY_MISSING, file=sys.stderr)
    sys.exit(2)
# Before Ray is loaded: it would send usage statistics from a cluster that is started here.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from server.errors import DeploymentError, InvalidParameter
from server.inference.repository import DEFAULT_MODEL
from server.ray.detect_folder.command import detect_folder
from server.ray.detect_folder.errors import JobRefused, JobStopped

EXIT_STOPPED, EXIT_REFUSED, EXIT_SIGNAL = 1, 2, 130


def main(arguments: Sequence[str]) -> int:
    """Runs a job; returns the exit code."""
    options = parser().parse_args(arguments)
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        detect_folder(options)
        return 0
    except (JobRefused, DeploymentError, InvalidParameter) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_REFUSED
    except (JobStopped, OSError) as error:  # such as a folder that can't be read
        print(f"error: {error}; the same command goes on from here", file=sys.stderr)
        return EXIT_STOPPED
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return EXIT_SIGNAL
    finally:
        signal.signal(signal.SIGTERM, before)


def interrupt(sig: int, frame: FrameType | None) -> NoReturn:
    """SIGTERM ends a job as Ctrl-C does."""
    raise KeyboardInterrupt


def parser() -> argparse.ArgumentParser:
    """The command line."""
    program = argparse.ArgumentParser(
        prog="python -m server.ray.detect_folder",
        description="Detects objects in all images of a folder, on all nodes of a Ray cluster.",
        epilog="Killed and started again, it goes on where it was.",
        allow_abbrev=False,
    )
    add = program.add_argument
    add("source", metavar="IN", help="folder of images, or such as s3://bucket/folder")
    add("out", metavar="OUT.parquet", help="folder for the results, a Parquet data set")
    detection = program.add_argument_group("detection, as POST /detect")
    detection.add_argument("--conf", type=float, default=0.25, help="least score, 0..1 [0.25]")
    detection.add_argument("--iou", type=float, default=0.7, help="overlap of two boxes [0.7]")
    detection.add_argument("--max-det", type=int, default=300, help="boxes of an image [300]")
    detection.add_argument("--classes", help="ids or names, with commas [all]")
    detection.add_argument("--agnostic-nms", action="store_true", help="classes suppress others")
    model = program.add_argument_group("model, as python -m server")
    model.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="file or folder")
    model.add_argument("--precision", default="auto", choices=("auto", "fp32", "fp16", "int8"))
    model.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "tensorrt"))
    model.add_argument(
        "--batch-size", type=_positive, help="images of an inference [8 on a GPU, 1 on a CPU]"
    )
    images = program.add_argument_group("images")
    images.add_argument("--all-files", action="store_true", help="whatever their names end in")
    images.add_argument("--max-image-bytes", type=_positive, default=64 * 2**20)
    images.add_argument("--max-image-pixels", type=_positive, default=50_000_000)
    images.add_argument(
        "--jpeg-dct-scaling", default="true", choices=("true", "false"), help="[true]"
    )
    cluster = program.add_argument_group("cluster")
    cluster.add_argument(
        "--address", help="of a Ray cluster, or auto; else Ray is started on this machine"
    )
    cluster.add_argument("--concurrency", type=_positive, help="workers [all there is room for]")
    cluster.add_argument("--cpus-per-worker", type=_positive, help="[1; with a GPU its share]")
    cluster.add_argument("--gpus-per-worker", type=float, help="such as 0.5 [1 on a GPU]")
    results = program.add_argument_group("results")
    results.add_argument("--images-per-part", type=_positive, help="rows of a file [25 to 1000]")
    results.add_argument(
        "--overwrite", action="store_true", help="delete the results of before and begin anew"
    )
    return program


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
