import os
from pathlib import Path

import pytest

from server.cpus import available_cpus

AFFINITY = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("content", "cpus"),
    [("100000 100000\n", 1), ("50000 100000\n", 1), ("max 100000\n", AFFINITY), ("", AFFINITY)],
    ids=["one", "half", "no quota", "unreadable"],
)
def test_a_version_2_quota_limits_the_cpus(tmp_path: Path, content: str, cpus: int) -> None:
    (tmp_path / "cpu.max").write_text(content)
    assert available_cpus(tmp_path) == cpus


@pytest.mark.parametrize(
    ("quota", "cpus"), [("100000", 1), ("-1", AFFINITY), ("9900000", AFFINITY)]
)
def test_a_version_1_quota_limits_the_cpus(tmp_path: Path, quota: str, cpus: int) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert available_cpus(tmp_path) == cpus


def test_without_control_groups_affinity_counts(tmp_path: Path) -> None:
    assert available_cpus(tmp_path) == AFFINITY
