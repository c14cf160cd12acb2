"""The commands on Ray where Ray is not installed."""

import subprocess
import sys
from pathlib import Path

import pytest

WITHOUT_RAY = """
import runpy, sys
sys.modules["ray"] = None  # as if it was not installed
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("module", ["server.ray.detect_folder", "server.ray.serve"])
def test_a_command_without_ray_ends_with_one_line(module: str, repo_dir: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_RAY, module, "in", "out"],
        cwd=repo_dir,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: Ray is not installed: pip install")
