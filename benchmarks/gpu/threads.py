"""What each thread of some processes used of the CPUs, from /proc.

Python's threads have no names that /proc knows before Python 3.14. `NAMING` is a `sitecustomize`
that gives them theirs when they start, in every process that has its folder on the Python path.
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
MAIN = "main thread"

NAMING = '''\
"""Gives each Python thread its name in /proc, as far as 15 bytes go."""
import threading
_run = threading.Thread.run
def run(self):
    try:
        with open("/proc/thread-self/comm", "w") as comm:
            comm.write(self.name[:15])
    except OSError:
        pass
    _run(self)
threading.Thread.run = run
'''


@dataclass(frozen=True, slots=True)
class ThreadUse:
    """What one thread has used since it began.

    Attributes:
        name: of the thread.
        user_s, system_s: seconds on a CPU, in its program and in the kernel.
        waited_s: seconds for which it could have run and had no CPU.
    """

    name: str
    user_s: float
    system_s: float
    waited_s: float


def threads_of(pids: Iterable[int]) -> dict[tuple[int, int], ThreadUse]:
    """All threads of some processes by (process, thread); those that end meanwhile are missing."""
    found = {}
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").glob("[0-9]*"):
            try:
                stat = (task / "stat").read_text(errors="replace")
                waited_ns = int((task / "schedstat").read_text().split()[1])
            except (OSError, IndexError):
                continue
            tid = int(task.name)
            name, _, rest = stat.partition("(")[2].rpartition(")")
            fields = rest.split()
            found[pid, tid] = ThreadUse(
                MAIN if tid == pid else name,
                int(fields[11]) * _TICK_S,
                int(fields[12]) * _TICK_S,
                waited_ns / 1e9,
            )
    return found


def group_of(name: str) -> str:
    """The pool of a thread: `decode_3` and `decode_11` are of `decode`."""
    return re.sub(r"[-_ ]*[0-9]+$", "", name) or name


def by_group(
    before: Mapping[tuple[int, int], ThreadUse],
    after: Mapping[tuple[int, int], ThreadUse],
    roles: Mapping[int, str],
    *,
    seconds: float,
    images: float,
) -> list[dict[str, Any]]:
    """What groups of threads used between two moments, the one that used most first.

    Args:
        before: `threads_of` at the first.
        after: at the second.
        roles: what each process is, in words; those of one role count together.
        seconds: between them.
        images: that were answered.

    Returns:
        Each with `process`, `threads` (their name), `count`, `cpus` (on average), `busiest` (of one
        of them, 1 is a whole CPU), `ms_per_image`, `system_share` and `waiting_cpus`.
    """
    groups: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for (pid, tid), end in after.items():
        begin = before.get((pid, tid), ThreadUse(end.name, 0.0, 0.0, 0.0))
        used = (
            end.user_s - begin.user_s,
            end.system_s - begin.system_s,
            end.waited_s - begin.waited_s,
        )
        key = roles.get(pid, "?"), group_of(end.name)
        groups.setdefault(key, []).append(used)
    rows = []
    for (role, name), uses in groups.items():
        cpu_s = [user + system for user, system, _ in uses]
        total = sum(cpu_s)
        rows.append(
            {
                "process": role,
                "threads": name,
                "count": len(uses),
                "cpus": total / seconds,
                "busiest": max(cpu_s) / seconds,
                "ms_per_image": 1e3 * total / images if images else None,
                "system_share": sum(system for _, system, _ in uses) / total if total else 0.0,
                "waiting_cpus": sum(waited for _, _, waited in uses) / seconds,
            }
        )
    return sorted(rows, key=lambda row: -row["cpus"])
