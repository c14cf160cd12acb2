"""What this process may really use of the machine's CPUs, and what they can do."""

import math
import os
from pathlib import Path

# What x86 and Arm call instructions that sum products of int8 in 32 bits, best first.
_INTEGER_FLAGS = {
    "amx_int8": "AMX-INT8",
    "avx512_vnni": "AVX512-VNNI",
    "avx_vnni": "AVX-VNNI",
    "i8mm": "I8MM",
    "asimddp": "dot products",
}


def available_cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Counts the CPUs that affinity and the container's quota leave, at least 1.

    A container limited to 2 of 64 CPUs sees all 64; with 64 threads it would be throttled.

    Args:
        cgroup: where the process's own control group is mounted, version 2 or 1.
    """
    quota = _quota_v2(cgroup / "cpu.max") or _quota_v1(cgroup / "cpu")
    affinity = len(os.sched_getaffinity(0))
    return max(1, min(affinity, math.ceil(quota))) if quota else affinity


def integer_instructions(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """The name of the best instructions that this CPU has for int8, such as "AVX512-VNNI".

    Args:
        cpuinfo: where Linux says what the CPU can do.

    Returns:
        None where the CPU has none of them, or where it is not known.
    """
    flags: set[str] = set()
    for line in _lines(cpuinfo):
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            flags.update(value.split())
            break  # every CPU of a machine says the same
    return next((name for flag, name in _INTEGER_FLAGS.items() if flag in flags), None)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


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
