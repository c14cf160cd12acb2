"""Ray nodes on this machine, to run jobs on and to kill; for tests and `benchmarks.ray_folder`."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
from ray.cluster_utils import Cluster

# The least that Ray takes; only small values pass through it here.
OBJECT_STORE_BYTES = 100 * 2**20
# A node's address is its name, so there are two. Ray listens to the network all the same, where its
# token keeps others out.
HEAD_IP, SECOND_IP = "127.0.0.2", "127.0.0.3"


@dataclass(frozen=True, slots=True)
class TwoNodes:
    """A cluster of two nodes, of which the second may be killed.

    Attributes:
        address: for `ray.init`.
    """

    address: str
    _second: Any

    def kill_second(self) -> int:
        """Ends the second node's raylet and all its workers by SIGKILL; tells how many."""
        raylets = [each.process.pid for each in self._second.all_processes["raylet"]]
        processes = [psutil.Process(pid) for pid in raylets]
        processes += [child for each in processes for child in each.children(recursive=True)]
        for process in processes:
            process.kill()
        psutil.wait_procs(processes, timeout=10)
        return len(processes)


@contextmanager
def two_nodes(*, cpus: int = 1) -> Iterator[TwoNodes]:
    """Starts a head and a second node, each with so many CPUs."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    settings: dict[str, Any] = {"num_cpus": cpus, "object_store_memory": OBJECT_STORE_BYTES}
    # Not below a test's own folder: the path of a socket has 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        # Not the argument `temp_dir`: the address would be noted in /tmp/ray, for all to find.
        before = os.environ.get("RAY_TMPDIR")
        os.environ["RAY_TMPDIR"] = folder
        cluster = Cluster()
        try:
            cluster.add_node(**settings, node_ip_address=HEAD_IP, include_dashboard=False)
            second = cluster.add_node(**settings, node_ip_address=SECOND_IP)
            cluster.wait_for_nodes()
            yield TwoNodes(cluster.address, second)
        finally:
            cluster.shutdown()
            if before is None:
                del os.environ["RAY_TMPDIR"]
            else:
                os.environ["RAY_TMPDIR"] = before
