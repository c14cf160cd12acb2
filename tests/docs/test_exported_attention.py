"""docs/exported-attention.md: its table is what its command prints, and its tests are there."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs/exported-attention.md"
OPERATORS = re.compile(r"(?:(\d+) × \()?((?:\d+ )?`[A-Z]\w+`(?:, `[A-Z]\w+`)*)\)?")


def blocks(language: str) -> list[str]:
    text = PAGE.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def counts(column: int) -> Counter[str]:
    (printed,) = blocks("text")
    rows = [line.split() for line in printed.splitlines()]
    return Counter({row[0]: int(row[column]) for row in rows if row[0] != "all"})


@pytest.mark.slow
def test_the_command_prints_the_table(repo_dir: Path) -> None:
    (code,), (printed,) = blocks("python"), blocks("text")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repo_dir, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(printed)  # ultralytics may tell of its settings first


def test_the_nodes_by_step_are_all_the_nodes() -> None:
    text = PAGE.read_text(encoding="utf-8")
    table = text[text.index("| | nodes | steps |") : text.index("In a whole artifact")]
    by_step: Counter[str] = Counter()
    for line in table.splitlines()[2:]:
        if not line:
            continue
        nodes = line.split("|")[2]
        for times, group in OPERATORS.findall(nodes):
            for many, operator in re.findall(r"(?:(\d+) )?`(\w+)`", group):
                by_step[operator] += int(times or 1) * int(many or 1)
    assert by_step == +counts(2)


def test_every_test_that_is_named_is_there(repo_dir: Path) -> None:
    code = "".join(
        path.read_text(encoding="utf-8") for path in sorted((repo_dir / "tests/unit").rglob("*.py"))
    )
    named = re.findall(r"`(test_\w+)`", PAGE.read_text(encoding="utf-8"))
    assert len(named) > 8
    assert not [name for name in named if f"def {name}(" not in code]
