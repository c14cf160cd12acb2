"""`yolov8-fla COMMAND`: the commands of `server`, `export` and `model` under one name.

Packages are named here and imported only when one of their commands runs: serving needs no torch.
"""

import argparse
import difflib
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from server.version import DISTRIBUTION, this_build

# A command, the arguments of `python -m` that do the same, and what it does.
COMMANDS = {
    "serve": ("server", "serve detections over HTTP"),
    "doctor": ("server doctor", "say what this machine lacks to serve, and the fix"),
    "export": ("export", "make a verified ONNX artifact of a trained detector"),
    "inspect": ("export inspect", "say what an artifact is and how it was verified"),
    "verify": ("export verify", "compare an artifact with its source again"),
    "convert": ("model convert", "make a YOLO-form data set of COCO, Pascal VOC or CSV"),
    "train": ("model train", "train an architecture on a YOLO-form data set"),
    "val": ("model val", "measure the accuracy of a checkpoint"),
    "predict": ("model predict", "draw a checkpoint's detections into images"),
}
COMPLETION = "completion"
EXIT_USAGE = 2
# The names of commands, then files. Flags would need a library that every server had to install,
# or, as each package has a parser of its own, imports of 0.4 s at every press of Tab.
COMPLETIONS = {
    "bash": """\
_yolov8_fla() {{
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then COMPREPLY=($(compgen -W "{words}" -- "$2")); fi
}}
complete -o default -F _yolov8_fla yolov8-fla""",
    "zsh": """\
_yolov8_fla() {{ _arguments '1:command:({words})' '*:file:_files' }}
compdef _yolov8_fla yolov8-fla""",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: the command line without the program's name; default: the process'.

    Returns:
        The command's exit code. `serve` and `doctor` end the process themselves.

    Raises:
        SystemExit: 2 where there is no such command, 0 after help and version.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in COMMANDS:
        return run_command(words[0], words[1:])
    root = parser()
    if words and words[0] != COMPLETION and not words[0].startswith("-"):
        close = difflib.get_close_matches(words[0], (*COMMANDS, COMPLETION), n=1)
        hint = f"did you mean {close[0]}?" if close else f"`{root.prog} --help` lists the commands"
        root.error(f"unknown command {words[0]!r}; {hint}")
    options = root.parse_args(words)
    print(COMPLETIONS[options.shell].format(words=" ".join((*COMMANDS, COMPLETION))))
    return 0


def run_command(name: str, arguments: list[str]) -> int:
    """Runs the command in its package; returns its exit code."""
    package, _, subcommand = COMMANDS[name][0].partition(" ")
    # What stands before the arguments is the program's name in help and messages.
    prog = DISTRIBUTION if subcommand else f"{DISTRIBUTION} {name}"
    passed = [subcommand, *arguments] if subcommand else arguments
    if package == "server":
        from server.__main__ import run

        run(passed, prog)
    code: int = import_module(f"{package}.__main__").main(passed, prog)
    return code


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        """Ends the process."""
        self.exit(EXIT_USAGE, f"{self.prog}: {message}\n")


def parser() -> argparse.ArgumentParser:
    """The command line for help, version and completion; commands have parsers of their own."""
    root = Parser(
        prog=DISTRIBUTION,
        description="Trains, exports and serves YOLOv8 detectors.",
        epilog=f"`{DISTRIBUTION} COMMAND --help` lists the options of a command.",
    )
    root.add_argument("--version", action="version", version=str(this_build()))
    commands = root.add_subparsers(metavar="COMMAND", title="commands", required=True)
    for name, (_, does) in COMMANDS.items():
        commands.add_parser(name, help=does)
    completion = commands.add_parser(COMPLETION, help="print the shell's completion of commands")
    completion.add_argument("shell", choices=tuple(COMPLETIONS))
    return root
