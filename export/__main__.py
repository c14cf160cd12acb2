"""python -m export: a trained checkpoint becomes a verified ONNX artifact."""

import argparse
import sys
import time
from pathlib import Path

from model.environment import contain_ultralytics


def main(argv: list[str] | None = None) -> int:
    """Exports one checkpoint; returns the exit code: 0, or 2 for what the user can mend."""
    contain_ultralytics()
    arguments = vars(parser().parse_args(argv))

    from export.errors import ExportError
    from export.pipeline import Request, export
    from server.errors import ServerError

    started = time.perf_counter()
    try:
        artifact = export(Request(**arguments), report=lambda line: print(line, flush=True))
    except (ExportError, ServerError, OSError) as error:
        print(f"python -m export: {' '.join(str(error).split())}", file=sys.stderr)
        return 2

    from export.table import table

    print(table(artifact, seconds=time.perf_counter() - started))
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(prog="python -m export", description=__doc__)
    root.add_argument("source", type=Path, metavar="SRC", help="a trained checkpoint, .pt")
    root.add_argument("-o", "--output", type=Path, required=True, help="the artifact, .onnx")
    root.add_argument("--imgsz", type=int, default=640, help="longer side of the input, pixels")
    root.add_argument("--data", type=Path, help="folder of pictures to verify with")
    root.add_argument("--name", help="the model's name in answers; the output's by default")
    root.add_argument("--static", action="store_true", help="one input shape: the square")
    root.add_argument("--force", action="store_true", help="replace an existing output")
    return root


if __name__ == "__main__":
    sys.exit(main())
