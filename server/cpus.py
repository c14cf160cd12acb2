"""How many CPUs this process may really use."""

import math
import os
from pathlib import Path


def available_cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Counts the CPUs that affinity and the container's quota leave, at least 1.

    A container limited to 2 of 64 CPUs sees all 64; with 64 threads it would be throttled.

    Args:
        cgroup: where the process's own control group is mounted, version 2 or 1.
    """
    quota = _quota_v2(cgroup / "cpu.max") or _quota_v1(cgroup / "cpu")
    affinity = len(os.sched_getaffinity(0))
    return max(1, min(affinity, math.ceil(quota))) if quota else affinity


def _quota_v2(path: Path) -> float | None:
    try:
        quota, period = path.read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _quota_v1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        return quota / int((folder / "cpu.cfs_period_us").read_text()) if quota > 0 else None
    except (OSError, ValueError):
        return None
