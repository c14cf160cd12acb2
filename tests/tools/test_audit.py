"""`make audit` is pip-audit; what it says of a version that nobody knows."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow  # it may wait for a network that is not there
def test_a_version_that_never_was_is_not_taken_for_looked_up(
    repo_dir: Path, tmp_path: Path
) -> None:
    steps = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", "audit"],
        cwd=repo_dir,
        capture_output=True,
        text=True,
        check=True,
    )
    command = shlex.split(steps.stdout.splitlines()[-1])
    assert "constraints.txt" in command
    command[0] = sys.executable
    (tmp_path / "constraints.txt").write_text("yolov8-fla==0.0.0.dev0\n")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""  # by which `make release` tells it from a vulnerability
    assert "pip_audit" in done.stderr
