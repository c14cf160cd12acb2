"""What this process may really use of the machine's CPUs, and what they can do."""

import math
import os
import platform
from pathlib import Path

from server.cgroup import MOUNT, OWN, cpu_quota

CPUINFO = Path("/proc/cpuinfo")

# What x86 and Arm call instructions that sum products of int8 in 32 bits, best first.
_INTEGER_FLAGS = {
    "amx_int8": "AMX-INT8",
    "avx512_vnni": "AVX512-VNNI",
    "avx_vnni": "AVX-VNNI",
    "i8mm": "I8MM",
    "asimddp": "dot products",
}


def available_cpus(cgroup: Path = MOUNT, own: Path = OWN) -> int:
    """Counts the CPUs that affinity and the container's quota leave, at least 1.

    A container limited to 2 of 64 CPUs sees all 64; with 64 threads it would be throttled.

    Args:
        cgroup: where control groups are mounted.
        own: the file that says which groups the process is in.
    """
    quota = cpu_quota(cgroup, own)
    affinity = len(os.sched_getaffinity(0))
    return max(1, min(affinity, math.ceil(quota))) if quota else affinity


def cpu_name(cpuinfo: Path = CPUINFO) -> str:
    """The processor's name as the kernel tells it, or its architecture."""
    return _value(cpuinfo, "model name") or platform.machine()


def integer_instructions(cpuinfo: Path = CPUINFO) -> str | None:
    """The name of the best instructions that this CPU has for int8, such as "AVX512-VNNI".

    Args:
        cpuinfo: where Linux says what the CPU can do.

    Returns:
        None where the CPU has none of them, or where it is not known.
    """
    flags = (_value(cpuinfo, "flags") or _value(cpuinfo, "Features")).split()
    return next((name for flag, name in _INTEGER_FLAGS.items() if flag in flags), None)


def _value(cpuinfo: Path, wanted: str) -> str:
    """What the kernel says of the first CPU; "" where it says nothing."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == wanted:
            return value.strip()
    return ""
