"""What this process may use of the machine, its CPUs and memory, and its control groups' limits.

A group's limit holds for all groups below it, so the way up counts, in version 1 and 2. In a
container the way that the process is told may not exist below the mount, which then is the
process's own group.
"""

import ctypes
import math
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path

MOUNT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")

# Version 1 says "no limit" as the largest number of pages.
_NO_LIMIT = 2**60

CPUINFO = Path("/proc/cpuinfo")

# What x86 and Arm call instructions that sum products of int8 in 32 bits, best first.
_INTEGER_FLAGS = {
    "amx_int8": "AMX-INT8",
    "avx512_vnni": "AVX512-VNNI",
    "avx_vnni": "AVX-VNNI",
    "i8mm": "I8MM",
    "asimddp": "dot products",
}

_M_MMAP_THRESHOLD = -3  # of malloc.h
LARGE_BLOCK_BYTES = 4 * 2**20


def cpu_quota(mount: Path = MOUNT, own: Path = OWN) -> float | None:
    """How many CPUs' worth of time the process may use, over 0; None where that is not limited.

    Args:
        mount: where control groups are mounted.
        own: the file that says which groups the process is in.
    """
    quotas = []
    for folder in _folders("", mount, own):
        quota, _, period = _first_line(folder / "cpu.max").partition(" ")
        quotas.append(_share(quota, period))
    for folder in _folders("cpu", mount, own):
        period = _first_line(folder / "cpu.cfs_period_us")
        quotas.append(_share(_first_line(folder / "cpu.cfs_quota_us"), period))
    return min((quota for quota in quotas if quota is not None), default=None)


def memory_limit(mount: Path = MOUNT, own: Path = OWN) -> int | None:
    """How many bytes the process and its group may use; None where that is not limited."""
    texts = [_first_line(folder / "memory.max") for folder in _folders("", mount, own)]
    texts += [
        _first_line(folder / "memory.limit_in_bytes") for folder in _folders("memory", mount, own)
    ]
    limits = [int(text) for text in texts if text.isdecimal()]
    return min((limit for limit in limits if limit < _NO_LIMIT), default=None)


def _folders(controller: str, mount: Path, own: Path) -> Iterator[Path]:
    """The process's group and those above it; of version 2 where the controller is ""."""
    root = mount / controller
    way = Path()
    for line in _read(own).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller in controllers.split(","):
            way = Path(path.strip().lstrip("/"))
    # A group outside of what is mounted is told as a way up.
    if ".." not in way.parts:
        yield from (root / each for each in (way, *way.parents) if each != Path())
    yield root


def _share(quota: str, period: str) -> float | None:
    if not (quota.isdecimal() and period.isdecimal()) or int(period) == 0:
        return None  # "max" and -1 say that there is none
    return int(quota) / int(period) or None


def _first_line(path: Path) -> str:
    return _read(path).partition("\n")[0].strip()


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


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


def _value(cpuinfo: Path, name: str) -> str:
    """What the kernel says of the first CPU; "" where it says nothing."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def return_freed_memory() -> None:
    """Gives freed memory back to the system, where the C library can (glibc).

    A model that is closed leaves holes that the next one does not fit: loading two models in turn
    24 times took 356 MB, and 191 MB with this after each.
    """
    trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def return_large_blocks() -> None:
    """Has the C library (glibc) give each large block back to the system as soon as it is freed.

    By itself it begins to keep blocks of up to 32 MiB once such a one was freed, 64 MiB for each
    thread: a 16-bit TIFF of 3 million pixels then took 69 MB to decode instead of 48. What
    photographs of a million pixels need is below, and costs no page faults.
    """
    mallopt: Callable[[int, int], int] | None = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)


def available_bytes() -> int:
    """Memory that this process may use: of its control groups, else of the machine."""
    return min(memory_limit() or machine_bytes(), machine_bytes())


def machine_bytes() -> int:
    """Memory of the machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def resident_bytes() -> int:
    """Memory that this process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
