"""Endurance: overload, mixed load, reloads, drains, fairness; each against a server of its own.

    python -m benchmarks.endurance SCENARIO [--out FOLDER] [flags of python -m server]

Unknown flags go to the server. Writes SCENARIO.json, and summary.json and summary.md of all that
ran; ends with 1 when a criterion is not met, with 2 when a server can't be started.
"""

import argparse
import asyncio
import datetime
import json
import os
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.endurance.drains import drains
from benchmarks.endurance.fairness import fairness
from benchmarks.endurance.mixed import mixed
from benchmarks.endurance.overload import overload
from benchmarks.endurance.plan import Plan
from benchmarks.endurance.reloads import reloads
from benchmarks.endurance.verdict import Criterion, Report, as_json, table
from benchmarks.load.envs import ROOT
from benchmarks.load.process import DidNotStart
from server.errors import SettingsInvalid
from server.host import available_cpus, cpu_name
from server.settings import ENV_PREFIX, Settings

SCENARIOS: dict[str, Callable[[Plan], Coroutine[Any, Any, Report]]] = {
    "overload": overload,
    "fairness": fairness,
    "drains": drains,
    "reloads": reloads,
    "mixed": mixed,
}
WEIGHTS = ROOT / "weights"


def main() -> int:
    """Runs what was asked for; returns the exit code."""
    parser = _parser()
    arguments, flags = parser.parse_known_args()
    for name in [name for name in os.environ if name.upper().startswith(ENV_PREFIX)]:
        del os.environ[name]  # the server gets none either
    try:
        plan = plan_of(arguments, flags)
    except SettingsInvalid as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    names = list(SCENARIOS) if arguments.scenario == "all" else [arguments.scenario]
    reports = []
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in names:
        began_s = time.perf_counter()
        report, could_run = run(name, plan)
        reports.append(report)
        content = metadata(plan) | as_json(report)
        content["took_s"] = round(time.perf_counter() - began_s, 1)
        _write(arguments.out / f"{name}.json", content)
        print(table(report), end="\n\n", flush=True)
        if not could_run and len(names) == 1:
            return 2
    summarize(reports, plan, arguments.out)
    return 0 if all(report.met for report in reports) else 1


def run(name: str, plan: Plan) -> tuple[Report, bool]:
    """One scenario; a report that is not met where it could not be run to its end."""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(SCENARIOS[name](plan)), True
    except DidNotStart as error:
        return Report(name, [Criterion("the server starts", str(error)[-500:], False)]), False
    except Exception as error:  # the other scenarios should still run
        traceback.print_exc()
        words = f"{type(error).__name__}: {error}"[:500]
        return Report(name, [Criterion("the scenario runs to its end", words, False)]), True


def summarize(reports: list[Report], plan: Plan, folder: Path) -> None:
    """One page and one file for all."""
    _write(
        folder / "summary.json",
        metadata(plan)
        | {
            "met": all(report.met for report in reports),
            "scenarios": {
                report.scenario: {
                    "met": report.met,
                    "criteria": [asdict(criterion) for criterion in report.criteria],
                    "figures": {name: report.figures[name] for name in report.shown},
                }
                for report in reports
            },
        },
    )
    known = metadata(plan)
    head = f"# Endurance\n\n{known['date']}, {known['cpus']} CPUs ({known['cpu']}): "
    page = head + f"`{known['command']}`\n\n" + "\n\n".join(table(each) for each in reports)
    (folder / "summary.md").write_text(page + "\n", encoding="utf-8")


def plan_of(arguments: argparse.Namespace, flags: list[str]) -> Plan:
    """The plan.

    Raises:
        SettingsInvalid: a flag is neither ours nor the server's.
    """
    return Plan(
        flags=flags,
        settings=Settings.load(flags, {}),
        python=arguments.python,
        images=arguments.images,
        artifacts=tuple(arguments.artifacts),
        saturation_s=arguments.saturation_seconds,
        overload_s=arguments.seconds,
        times=arguments.times,
        mixed_s=60 * arguments.minutes,
        reloads=arguments.reloads,
        drains=arguments.drains,
        fairness_s=arguments.fairness_seconds,
        seed=arguments.seed,
    )


def metadata(plan: Plan) -> dict[str, Any]:
    """What the figures hold for."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": shlex.join(["python", "-m", "benchmarks.endurance", *sys.argv[1:]]),
        "cpu": cpu_name(),
        "cpus": available_cpus(),
        "server_flags": list(plan.flags),
    }


def _write(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.endurance",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("scenario", choices=[*SCENARIOS, "all"])
    add("--seconds", type=float, default=60, help="of overload")
    add("--times", type=float, default=10, help="of saturation, that the overload offers")
    add("--minutes", type=float, default=30, help="of mixed load")
    add("--reloads", type=int, default=200)
    add("--drains", type=int, default=20)
    add("--fairness-seconds", type=float, default=30, help="of each of its two halves")
    add("--saturation-seconds", type=float, default=10, help="of its measurement")
    default_artifacts = [
        WEIGHTS / "yolov8n-fla-bccd.onnx",
        WEIGHTS / "yolov8n-fla-bccd-int8.onnx",
    ]
    add("--artifacts", type=Path, nargs=2, default=default_artifacts, help="for reloads: A B")
    add("--images", type=Path, default=ROOT / "samples", help="JPEGs, some of 640 x 480")
    add("--out", type=Path, default=ROOT / "runs" / "endurance")
    add("--python", default=sys.executable, help="runs the server")
    add("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    sys.exit(main())
