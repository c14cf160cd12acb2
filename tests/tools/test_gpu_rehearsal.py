"""The tests for GPUs, run on a CPU: whatever is wrong with themselves shows here first."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_gpu_tests_themselves_run(repo_dir: Path) -> None:
    # On a CPU all ways of making calls are one.
    once = "plain or not graphs"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/gpu", "--rehearse", "-k", once, "-q"],
        cwd=repo_dir,
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "a CPU cannot rehearse TensorRT" in done.stdout
    assert "no NVIDIA GPU is visible" not in done.stdout
