"""docs/exported-attention.md: what its command prints, and the tests it names."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs/exported-attention.md"


def blocks(language: str) -> list[str]:
    text = PAGE.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_the_command_prints_the_table(repo_dir: Path) -> None:
    (code,), (printed,) = blocks("python"), blocks("text")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repo_dir, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(printed)  # ultralytics may tell of its settings first


def test_every_test_that_is_named_is_there(repo_dir: Path) -> None:
    code = "".join(
        path.read_text(encoding="utf-8") for path in sorted((repo_dir / "tests/unit").rglob("*.py"))
    )
    named = re.findall(r"`(test_\w+)`", PAGE.read_text(encoding="utf-8"))
    assert len(named) > 8
    assert not [name for name in named if f"def {name}(" not in code]
