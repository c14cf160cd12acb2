"""CPU seconds and memory of a process with all its descendants, from /proc."""

import os
from dataclasses import dataclass
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Usage:
    """What a tree of processes used.

    Attributes:
        cpu_s: user and system seconds since each process began, ended children included.
        rss_bytes: resident memory, pages that processes share counted once for each.
        pss_bytes: the same with shared pages divided among who shares them.
        processes: how many there are.
    """

    cpu_s: float
    rss_bytes: int
    pss_bytes: int
    processes: int


def tree_usage(pid: int) -> Usage:
    """Adds up a process and its descendants; those that end meanwhile count as nothing."""
    cpu_s, rss, pss, processes = 0.0, 0, 0, 0
    for member in tree(pid):
        stat = _stat(member)
        if stat is None:
            continue
        # Fields 14 to 17 and 24 of proc_pid_stat(5); `stat` begins with field 3.
        cpu_s += sum(map(int, stat[11:15])) * _TICK_S
        rss += int(stat[21]) * _PAGE
        pss += _pss(member)
        processes += 1
    return Usage(cpu_s, rss, pss, processes)


def tree(pid: int) -> list[int]:
    """The process and its living descendants, parents first."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (stat := _stat(int(entry.name))):
            children.setdefault(int(stat[1]), []).append(int(entry.name))
    found = [pid]
    for member in found:  # grows while it is walked
        found += children.get(member, [])
    return found


def _stat(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()  # the name in front may hold blanks and brackets


def _pss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
