"""The GPU benchmark: raw limit, pipeline, server, attention, kernels, memory.

    python -m benchmarks.gpu --inputs INPUTS -o FOLDER
    python -m benchmarks.gpu --inputs INPUTS -o FOLDER --parts a,c --minutes 9
    python -m benchmarks.gpu merge ONE/gpu.json TWO/gpu.json -o FOLDER

Writes FOLDER/gpu.json, the raw figures, after every measurement, and FOLDER/gpu.md, the tables. A
FOLDER that has figures already is gone on with. INPUTS is what `benchmarks.gpu.inputs` made. First
it proves that models run on the GPU; where they don't, nothing is measured. `--device cpu` tries
the script, and its report says so.

Exit codes: 0, every part gave its figures; 1, some failed; 2, nothing can be measured; 130, Ctrl-C.
"""

import argparse
import os
import shlex
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.gpu.bench import Job
from benchmarks.gpu.machine import reading
from benchmarks.gpu.manifest import InputsInvalid, read_inputs, unpacked
from benchmarks.gpu.page import page
from benchmarks.gpu.part import ENVIRONMENT, MACHINE, PARTS
from benchmarks.gpu.record import (
    FILE,
    DoNotMatch,
    Record,
    allotted_s,
    differences,
    merged,
    new_record,
    read_record,
    write_record,
)
from benchmarks.load.child import python, run_part
from server.host import available_cpus

MACHINE_S = 60.0
RESERVE_S = 10.0  # of the whole, for the starts and ends of processes
SERVER_FLAGS = "--max-batch-size 16 --max-queue-images 512"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["merge"]:
        return run_merge(merge_parser().parse_args(arguments[1:]))
    chosen = parser().parse_args(arguments)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a script started us
    try:
        with unpacked(chosen.inputs) as folder:
            return run(chosen, folder)
    except (InputsInvalid, DoNotMatch, ValueError) as error:
        print(f"gpu: {error}", file=sys.stderr)
        return 2


def run(chosen: argparse.Namespace, folder: Path) -> int:
    """Measures the parts that were asked for."""
    end_s = time.monotonic() + 60 * chosen.minutes - RESERVE_S
    inputs = read_inputs(folder)
    chosen.output.mkdir(parents=True, exist_ok=True)
    file = chosen.output / FILE
    job = job_of(chosen, folder)

    proof = run_part(
        python("benchmarks.gpu.part", MACHINE),
        replace(job, deadline_s=time.monotonic() + MACHINE_S).as_values(),
        lambda _: None,
        deadline_s=time.monotonic() + MACHINE_S,
    )
    if proof["status"] != "complete":
        print(
            f"gpu: models do not run on {chosen.device}, so nothing is measured:\n"
            f"{proof.get('error', proof['status'])}",
            file=sys.stderr,
        )
        return 2
    record = new_record(chosen.device, inputs.sha256, proof["figures"])
    if file.exists():
        before = read_record(file)
        if found := differences(before, record):
            raise DoNotMatch(f"{file} has other figures: {'; '.join(found)}")
        record = before

    interrupted = False
    try:
        measure(chosen, job, record, file, end_s)
    except KeyboardInterrupt:
        interrupted = True
    write(record, chosen.output)
    print(page(record))
    if interrupted:
        return 130
    failed = [name for name in chosen.parts if record["parts"][name]["status"] == "failed"]
    return 1 if failed else 0


def measure(chosen: argparse.Namespace, job: Job, record: Record, file: Path, end_s: float) -> None:
    """Runs the parts, each with its share of the time; the record is written as they go."""
    parts: list[str] = chosen.parts
    for i, name in enumerate(parts):
        weights = {each: PARTS[each][2] for each in parts[i:]}
        seconds = allotted_s(weights, max(0.0, end_s - time.monotonic()))
        deadline_s = time.monotonic() + seconds
        known = {key: part.get("figures", {}) for key, part in record["parts"].items()}
        about: dict[str, Any] = {
            "status": "cut short",
            "began": datetime.now(UTC).isoformat(timespec="seconds"),
            "allotted_s": round(seconds, 1),
            "settings": settings_of(job),
            "gpu_before": reading(chosen.device),
        }
        record["parts"][name] = about
        print(f"{name}: {seconds:.0f} s", file=sys.stderr, flush=True)

        def note(figures: Mapping[str, Any], about: dict[str, Any] = about) -> None:
            about["figures"] = figures
            write_record(record, file)

        began_s = time.monotonic()
        about |= run_part(
            python("benchmarks.gpu.part", name),
            replace(job, deadline_s=deadline_s, known=known).as_values(),
            note,
            deadline_s=deadline_s,
            environment=ENVIRONMENT.get(name),
        )
        about |= {
            "seconds": round(time.monotonic() - began_s, 1),
            "gpu_after": reading(chosen.device),
        }
        record["parts"][name] = about
        write(record, file.parent)
        print(f"{name}: {about['status']} {about.get('error', '')}", file=sys.stderr, flush=True)


def write(record: Record, folder: Path) -> None:
    """Both files."""
    write_record(record, folder / FILE)
    (folder / "gpu.md").write_text(page(record))


def job_of(chosen: argparse.Namespace, folder: Path) -> Job:
    """The job of all parts."""
    return Job(
        device=chosen.device,
        inputs=str(folder),
        deadline_s=0.0,
        batches=chosen.batches,
        cuda=dict(chosen.cuda),
        http_workers=chosen.http_workers,
        server_flags=tuple(shlex.split(chosen.server_flags)),
        generators=chosen.generators,
        clients=chosen.clients,
    )


def settings_of(job: Job) -> dict[str, Any]:
    """What was chosen, for the record: all but what stands elsewhere in it."""
    values = job.as_values()
    return {k: values[k] for k in values if k not in ("inputs", "deadline_s", "known", "device")}


def run_merge(chosen: argparse.Namespace) -> int:
    """Puts the figures of several calls together."""
    try:
        record = merged([read_record(path) for path in chosen.files])
    except (DoNotMatch, ValueError, OSError) as error:
        print(f"gpu: {error}", file=sys.stderr)
        return 2
    chosen.output.mkdir(parents=True, exist_ok=True)
    write(record, chosen.output)
    print(page(record))
    return 0


def parts_of(text: str) -> list[str]:
    """Names of parts from names and letters, each once, in the order in which they are measured."""
    wanted = {each.strip() for each in text.split(",") if each.strip()}
    found = [name for name, (_, letter, _) in PARTS.items() if wanted & {name, letter}]
    known = {*PARTS, *(letter for _, letter, _ in PARTS.values() if letter)}
    if unknown := sorted(wanted - known):
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: there are {', '.join(PARTS)}")
    if not found:
        raise argparse.ArgumentTypeError("names no part")
    return found


def numbers(text: str) -> tuple[int, ...]:
    """Different numbers >= 1 from `1,2,4`, ascending."""
    found = tuple(sorted({int(each) for each in text.split(",")}))
    if found[0] < 1:
        raise argparse.ArgumentTypeError("numbers are at least 1")
    return found


def cuda_option(text: str) -> tuple[str, str]:
    """An option of the CUDA provider and its value, from `use_tf32=1`."""
    name, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=VALUE")
    return name, value


def parser() -> argparse.ArgumentParser:
    """The command line of a measurement."""
    root = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cpus = available_cpus()
    add = root.add_argument
    add("--inputs", type=Path, required=True, help="folder or archive of benchmarks.gpu.inputs")
    add("-o", "--output", type=Path, required=True, help="folder of gpu.json and gpu.md")
    add("--parts", type=parts_of, default=list(PARTS), help=f"of {', '.join(PARTS)}; or a to f")
    add("--minutes", type=float, default=9.0, help="for this call, all in all; default 9")
    add("--device", default="cuda", help="cuda, cuda:N, or cpu to try the script")
    add("--batches", type=numbers, default=(1, 2, 4, 8, 16, 32), help="default 1,2,4,8,16,32")
    add("--cuda", type=cuda_option, action="append", default=[], metavar="NAME=VALUE",
        help="an option of the CUDA provider, such as use_tf32=1")  # fmt: skip
    add("--http-workers", type=numbers, default=(1,), help="of the server, such as 1,4")
    add("--server-flags", default=SERVER_FLAGS, help=f"default {SERVER_FLAGS!r}")
    add("--generators", type=int, default=max(1, cpus // 4), help="processes that make load")
    add("--clients", type=numbers, default=(32, 64, 128, 256), help="to find the saturation with")
    return root


def merge_parser() -> argparse.ArgumentParser:
    """The command line that puts figures together."""
    root = argparse.ArgumentParser(prog="python -m benchmarks.gpu merge")
    root.add_argument("files", type=Path, nargs="+", metavar="gpu.json")
    root.add_argument("-o", "--output", type=Path, required=True, help="folder of the result")
    return root


if __name__ == "__main__":
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    sys.exit(main())
