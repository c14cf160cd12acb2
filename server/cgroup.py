"""What the process's control groups leave it: CPU time and memory, in version 1 or 2.

A group's limit holds for all groups below it, so the way up counts. In a container the way that
the process is told may not exist below the mount, which then is the process's own group.
"""

from collections.abc import Iterator
from pathlib import Path

MOUNT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")

# Version 1 says "no limit" as the largest number of pages.
_NO_LIMIT = 2**60


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
