"""The endurance scenarios in short, on a tiny model: what holds whatever the machine's speed."""

import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import uvloop

from benchmarks.endurance import __main__ as command
from benchmarks.endurance.plan import Plan
from benchmarks.endurance.process import ServerEnded, serving
from benchmarks.endurance.verdict import Report
from server.settings import Settings
from tests.support.artifacts import tiny_artifact

pytestmark = pytest.mark.slow


@pytest.fixture
def plan(artifact: Path, repo_dir: Path, tmp_path: Path) -> Plan:
    other = tiny_artifact(tmp_path / "other.onnx", max_candidates=7)
    flags = [f"--model={artifact}", "--device=cpu", "--intra-op-threads=1"]
    return Plan(
        flags=flags,
        settings=Settings.load(flags, {}),
        python=sys.executable,
        images=repo_dir / "samples",
        artifacts=(artifact, other),
        saturation_s=0.5,
        overload_s=1.0,
        times=2.0,
        mixed_s=3.0,
        reloads=11,
        drains=2,
        fairness_s=1.0,
        seed=1,
    )


def unmet(report: Report, *words: str) -> dict[str, str]:
    """The criteria that hold any of the words, and are not met; there are some for each word."""
    for word in words:
        assert any(word in each.name for each in report.criteria), (word, report.criteria)
    chosen = [each for each in report.criteria if any(word in each.name for word in words)]
    return {each.name: each.seen for each in chosen if not each.met}


def run(scenario: str, plan: Plan) -> Report:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(command.SCENARIOS[scenario](plan))


def test_overload_ends_in_answers_and_refusals(plan: Plan) -> None:
    flags = [*plan.flags, "--max-queue-images=2", "--max-images-per-request=2"]
    report = run("overload", replace(plan, flags=flags))
    assert not unmet(report, "503 with Retry-After")
    assert report.figures["answers"]["200"] > 0


def test_all_forms_at_once_are_answered_once(plan: Plan) -> None:
    report = run("mixed", plan)
    words = "no 5xx", "right", "one outcome", "exactly once", "probes", "queue empty"
    assert not unmet(report, *words)
    assert len(report.figures["requests_by_kind"]) > 5


def test_reloads_fail_no_request(plan: Plan) -> None:
    report = run("reloads", plan)
    assert not unmet(report, "no failed request", "served at the time", "good files")
    assert len(report.figures["answered_by"]) == 2


def test_drains_answer_what_was_accepted(plan: Plan) -> None:
    assert not unmet(run("drains", plan), "accepted", "exit code")


def test_fairness_is_measured(plan: Plan) -> None:
    report = run("fairness", plan)
    assert not unmet(report, "answered with 200")
    assert report.figures["large_ones"] > 0


@pytest.mark.anyio
async def test_a_server_that_ends_by_itself_is_told_with_its_last_lines(plan: Plan) -> None:
    async def end_it() -> None:
        async with serving(plan.flags, plan.python) as server:
            server.process.kill()
            await server.process.wait()
            await server.health()

    with pytest.raises(ServerEnded, match=r"(?s)exit code -9: .*\"ready\""):
        await end_it()


def test_the_command_writes_what_it_saw_and_fails_with_it(
    artifact: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["drains", "--drains=1", f"--out={tmp_path}", f"--model={artifact}"]
    monkeypatch.setattr(sys, "argv", ["endurance", *arguments, "--drain-timeout-s=0"])
    code = command.main()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert code == (0 if summary["met"] else 1)
    assert summary["scenarios"].keys() == {"drains"}
    assert (tmp_path / "drains.json").exists()
    assert capsys.readouterr().out.strip() in (tmp_path / "summary.md").read_text()
    monkeypatch.setattr(sys, "argv", ["endurance", *arguments[:-1], "--model=missing.onnx"])
    assert command.main() == 2
    monkeypatch.setattr(sys, "argv", ["endurance", *arguments, "--prot=1"])
    assert command.main() == 2
