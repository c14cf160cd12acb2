"""Tests and benchmarks on a GPU machine that reaches no package registry.

On a machine with a registry: `prepare` downloads the wheels for the other machine's Python, checks
that they need nothing else, and splits them into parts. On the machine with the GPU, in a copy of
the checkout: `add` takes parts, as they come; `install` makes an environment of them; `prove` says
what is there and where the model runs; `test` runs tests/gpu; `bench` runs benchmarks.gpu. Each is
a call of its own, and what they need of each other is in one folder, STORE.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import gpu_run_parts
import gpu_run_target

MIB = 2**20


def main(arguments: Sequence[str]) -> int:
    """Runs one command; returns the exit code."""
    # What follows `--` is another program's.
    own, others = split_at_dashes(arguments)
    chosen = parser().parse_args(own)
    try:
        return run(chosen, others)
    except gpu_run_parts.Incomplete as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def run(chosen: argparse.Namespace, others: Sequence[str]) -> int:
    """Runs the command that was chosen, with the arguments behind `--`."""
    if chosen.command == "prepare":
        return prepare(chosen)
    store: Path = chosen.store.absolute()
    if chosen.command == "add":
        left = gpu_run_parts.add(chosen.part, store)
        print(f"still missing: {', '.join(left)}" if left else "all parts are there")
        return 0
    if chosen.command == "install":
        gpu_run_target.install(store, chosen.cuda_from)
        return 0
    if not gpu_run_target.python_of(store).exists():
        raise gpu_run_parts.Incomplete(f"{store}: no environment; `install` makes it")
    out: Path = chosen.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    if chosen.command == "prove":
        code = gpu_run_target.prove(store, out, chosen.device)
    elif chosen.command == "test":
        code = gpu_run_target.test(store, out, chosen.only, others, chosen.limit_s)
    else:
        command = ["-m", "benchmarks.gpu", "-o", str(out), *others]
        code = gpu_run_target.step(store, out, chosen.name, command, chosen.limit_s)
    return code if gpu_run_target.check_output(out) else code or 1


def prepare(chosen: argparse.Namespace) -> int:
    """Downloads, checks and splits the wheels."""
    import gpu_run_wheels as wheels  # needs `packaging`, which the other machine may lack

    chosen.out.mkdir(parents=True, exist_ok=True)
    folder = chosen.out / "wheels"
    folder.mkdir(exist_ok=True)
    minor = int(chosen.glibc.removeprefix("2."))
    try:
        found = wheels.collect(
            folder,
            wheels.wanted(with_cuda=chosen.with_cuda),
            wheels.pins(),
            chosen.python,
            wheels.fetch_with_pip(chosen.python, (2, minor)),
        )
    except wheels.Unresolved as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    parts = gpu_run_parts.split(
        found, chosen.out, part_bytes=int(chosen.part_mib * MIB), python=chosen.python
    )
    size = sum(each.stat().st_size for each in found)
    print(f"{len(found)} wheels, {size / MIB:.1f} MiB; {len(parts.parts)} parts in {chosen.out}:")
    for name in parts.parts:
        print(f"{name}  {(chosen.out / name / 'data').stat().st_size / MIB:.1f} MiB")
    return 0


def split_at_dashes(arguments: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """What is before the first `--`, and what is behind it."""
    at = list(arguments).index("--") if "--" in arguments else len(arguments)
    return arguments[:at], arguments[at + 1 :]


def parser() -> argparse.ArgumentParser:
    """The commands and their flags."""
    root = argparse.ArgumentParser(prog="gpu_run.py", description=(__doc__ or "").split("\n")[0])
    commands = root.add_subparsers(dest="command", required=True)

    ours = commands.add_parser("prepare", help="download wheels and split them into parts")
    ours.add_argument("out", type=Path, help="a folder for the parts")
    ours.add_argument("--python", default="3.12", help="of the other machine; default 3.12")
    ours.add_argument("--glibc", default="2.28", help="of the other machine, or older")
    ours.add_argument("--part-mib", type=float, default=48, help="size of a part; default 48")
    ours.add_argument(
        "--with-cuda", action="store_true", help="NVIDIA's CUDA libraries too (1.3 GB)"
    )

    theirs = {
        name: commands.add_parser(name, help=text)
        for name, text in {
            "add": "take parts that were carried",
            "install": "make an environment of all parts",
            "prove": "write what the machine has, and where the default model runs",
            "test": "run tests/gpu; behind --, arguments for pytest",
            "bench": "run benchmarks.gpu with -o OUT; behind --, its other arguments",
        }.items()
    }
    theirs["add"].add_argument("part", type=Path, help="a part, or a folder of parts")
    for each in theirs.values():
        each.add_argument("store", type=Path, help="what the commands keep between calls")
    theirs["install"].add_argument(
        "--cuda-from",
        type=Path,
        action="append",
        default=[],
        metavar="SITE_PACKAGES",
        help="where NVIDIA's packages are, unless the Python that runs this has them",
    )
    for name in ("prove", "test", "bench"):
        theirs[name].add_argument("out", type=Path, help="for what comes of it")
    theirs["prove"].add_argument("--device", default="cuda", help="cpu to rehearse")
    for name in ("test", "bench"):
        theirs[name].add_argument(
            "--limit-s", type=float, default=540, help="then it is told to end; default 540"
        )
    theirs["test"].add_argument(
        "--only", nargs="+", metavar="NAME", help="of tests/gpu/test_NAME.py, in this order"
    )
    theirs["bench"].add_argument("--name", default="bench", help="of the log; default bench")
    return root


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
