"""python -m export: a trained detector becomes a verified ONNX artifact.

python -m export SRC -o OUT.onnx      makes an artifact
python -m export inspect FILE         says what an artifact is and how it was verified
python -m export verify FILE --source SRC   compares the two again
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from model.environment import contain_ultralytics
from server.version import this_build

if TYPE_CHECKING:
    from export.sources.source import Origin


PROG = "python -m export"


def main(argv: list[str] | None = None, prog: str = PROG) -> int:
    """Runs one command; returns the exit code: 0, 2 for what the user can mend, 130 for Ctrl-C.

    Args:
        argv: the arguments; default: the process'.
        prog: what stands before them, for help and messages.
    """
    interrupt = Interrupt()
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:  # as a shell's background job, which another's Ctrl-C spares
        signal.signal(signal.SIGINT, interrupt)
    try:
        return run_command(sys.argv[1:] if argv is None else argv, prog, interrupt)
    except BaseException:
        if not interrupt.came:
            raise
        print(f"{prog}: interrupted", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGINT, before)


def run_command(argv: list[str], prog: str, interrupt: "Interrupt") -> int:
    """Runs one command; returns the exit code: 0, or 2 for what the user can mend."""
    contain_ultralytics()
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when the library is loaded
    make_parser, run = COMMANDS.get(argv[0] if argv else "", (export_parser, run_export))
    parser = make_parser(prog)
    arguments = parser.parse_args(argv[1:] if run is not run_export else argv)

    from export.errors import ExportError
    from model.errors import missing_library, printable
    from server.errors import ServerError

    try:
        run(arguments, interrupt)
    except ModuleNotFoundError as error:
        print(f"{parser.prog}: {missing_library(error)}", file=sys.stderr)
        return 2
    except (ExportError, ServerError, OSError) as error:
        interrupt.check()  # what Ctrl-C broke is no error of the user's
        # One line; only layers that are not recognised are listed on lines of their own.
        # Text of a hostile file may be in it: nothing that would steer the terminal.
        lines = (printable(" ".join(line.split())) for line in str(error).splitlines())
        print(f"{parser.prog}:", "\n".join(lines), file=sys.stderr)
        return 2
    return 0


class Interrupted(BaseException):
    """Ctrl-C was pressed.

    Not KeyboardInterrupt: where that passes through an `exec` of text, as of a dataclass that an
    import defines, the interpreter ends by the signal whatever is returned.
    """


class Interrupt:
    """A handler of SIGINT that is not forgotten.

    Attributes:
        came: the signal arrived.
    """

    def __init__(self) -> None:
        self.came = False

    def __call__(self, *_: object) -> None:
        """Takes the signal."""
        self.came = True
        raise Interrupted

    def check(self) -> None:
        """Raises Interrupted if the signal arrived.

        The first one may be lost: exceptions end in callbacks from native code and in finalizers.
        """
        if self.came:
            raise Interrupted


def export_parser(prog: str) -> argparse.ArgumentParser:
    """The command line that makes an artifact."""
    root = argparse.ArgumentParser(
        prog=prog,
        description=(__doc__ or "").replace(PROG, prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.add_argument("--version", action="version", version=str(this_build()))
    root.add_argument("-o", "--output", type=Path, required=True, help="the artifact, .onnx")
    root.add_argument("--imgsz", type=int, help="longer side of the input, pixels; default 640")
    root.add_argument(
        "--precision",
        choices=("fp32", "fp16", "int8"),
        default="fp32",
        help="fp16 for GPUs, int8 for CPUs with VNNI and for TensorRT",
    )
    root.add_argument(
        "--data",
        type=Path,
        help="a data set's YAML to compare and to measure accuracy on, or a folder of images "
        "to compare on",
    )
    root.add_argument(
        "--calibration",
        type=Path,
        help="folder of images that int8 takes its ranges from; default: the training images "
        "of --data",
    )
    root.add_argument(
        "--accept-loss",
        action="store_true",
        help="write a reduced precision even where it loses accuracy or that can't be told",
    )
    add_origin(root, "source")
    root.add_argument("--name", help="the model's name in responses; the output's by default")
    root.add_argument("--static", action="store_true", help="one input shape: the square")
    root.add_argument("--force", action="store_true", help="replace an existing output")
    return root


def inspect_parser(prog: str) -> argparse.ArgumentParser:
    """The command line that shows an artifact."""
    root = argparse.ArgumentParser(prog=f"{prog} inspect")
    root.add_argument("file", type=Path, help="an artifact, .onnx")
    root.add_argument("--json", action="store_true", help="the whole description as JSON")
    return root


def verify_parser(prog: str) -> argparse.ArgumentParser:
    """The command line that compares an artifact with its source again."""
    root = argparse.ArgumentParser(prog=f"{prog} verify")
    root.add_argument("file", type=Path, help="an artifact, .onnx")
    root.add_argument("--data", type=Path, help="a data set's YAML or a folder of images")
    root.add_argument("--json", action="store_true", help="print the new certificate as JSON")
    add_origin(root, "--source")
    return root


def add_origin(root: argparse.ArgumentParser, argument: str) -> None:
    """The arguments that say what the source is."""
    required = {"required": True} if argument.startswith("-") else {}
    root.add_argument(
        argument,
        type=Path,
        metavar="SRC",
        help="a trained checkpoint (.pt), parameters alone with --arch, or ultralytics' .onnx",
        **required,  # type: ignore[arg-type]
    )
    root.add_argument("--map", type=Path, help="YAML: what the classes are that are not known")
    root.add_argument("--arch", help="layers of a file of parameters: yolov8n-fla, ..., or a YAML")
    root.add_argument("--names", help="class names for a file of parameters: cat,dog")


def run_export(arguments: argparse.Namespace, interrupt: Interrupt) -> None:
    """Makes an artifact; prints its steps and its certificate."""
    from export.pipeline import Request, export
    from export.table import certificate_rows, model_rows, table

    options = vars(arguments)
    origin = origin_of(arguments)
    for name in ("source", "map", "arch", "names"):
        del options[name]
    started = time.perf_counter()
    artifact = export(Request(origin=origin, **options), report=progress(interrupt))
    rows = model_rows(artifact) | certificate_rows(artifact.metadata.certificate)
    del rows["source"], rows["made with"]  # `inspect` has them
    rows["file"] = f"{artifact.path}"
    rows["time"] = f"{time.perf_counter() - started:.1f} s"
    print(table(rows))


def run_inspect(arguments: argparse.Namespace, _: Interrupt) -> None:
    """Prints what an artifact says of itself, once its graph was found to be the one verified."""
    from export.table import certificate_rows, model_rows, table
    from server.inference.artifact import load_artifact

    artifact = load_artifact(arguments.file)
    if arguments.json:
        print(artifact.metadata.model_dump_json(indent=2))
    else:
        print(table(model_rows(artifact) | certificate_rows(artifact.metadata.certificate)))


def run_verify(arguments: argparse.Namespace, interrupt: Interrupt) -> None:
    """Prints the certificate that an artifact would get today."""
    from export.table import certificate_rows, table
    from export.verification.reverify import reverify

    # With --json the answer alone goes to standard output.
    report = progress(interrupt, sys.stderr if arguments.json else None)
    certificate = reverify(arguments.file, origin_of(arguments), arguments.data, report=report)
    if arguments.json:
        print(certificate.model_dump_json(indent=2))
    else:
        print(table(certificate_rows(certificate)))


def origin_of(arguments: argparse.Namespace) -> "Origin":
    """What the command line says of the source."""
    from export.sources.source import Origin

    names = tuple(name.strip() for name in arguments.names.split(",")) if arguments.names else ()
    return Origin(arguments.source, arguments.map, arguments.arch, names)


def progress(interrupt: Interrupt, stream: TextIO | None = None) -> Callable[[str], None]:
    """Prints a line at once, also where output goes into a file; the place to stop after Ctrl-C."""

    def report(line: str) -> None:
        interrupt.check()
        print(line, file=stream, flush=True)

    return report


COMMANDS = {
    "inspect": (inspect_parser, run_inspect),
    "verify": (verify_parser, run_verify),
}

if __name__ == "__main__":
    sys.exit(main())
