"""Ray nodes on this machine, to run jobs on and to kill; for tests and `ray_folder`.

As `python -m benchmarks.micro.ray_nodes CPUS` it is the process in which they are started: Ray
leaves state behind in a process that it failed in, and forks, which goes wrong in one with many
threads. It prints the address, kills the second node when a line comes, and ends all at the end of
input.
"""

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

# The least that Ray takes; only small values pass through it here.
OBJECT_STORE_BYTES = 100 * 2**20
# A node's address is its name, so there are two. Ray listens to the network all the same, where its
# token keeps others out.
HEAD_IP, SECOND_IP = "127.0.0.2", "127.0.0.3"
# Ray gives a node 30 s, which a busy machine may not start it in.
TRIES, START_S, END_S = 3, 75.0, 20.0
REPOSITORY = Path(__file__).resolve().parents[2]


class NodesNotStarted(Exception):
    """Ray did not start; the message is what it said last."""


@dataclass(frozen=True, slots=True)
class TwoNodes:
    """A cluster of two nodes, of which the second may be killed.

    Attributes:
        address: for `ray.init`.
    """

    address: str
    _process: "subprocess.Popen[str]"

    def kill_second(self) -> int:
        """Ends the second node's raylet and all its workers by SIGKILL; tells how many."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("kill\n")
        self._process.stdin.flush()
        return int(read_value(self._process, "killed"))


@contextmanager
def two_nodes(*, cpus: int = 1) -> Iterator[TwoNodes]:
    """Starts a head and a second node, each with so many CPUs.

    Raises:
        NodesNotStarted: not in three tries.
    """
    with ExitStack() as stack:
        failures: list[str] = []
        while len(failures) < TRIES:
            attempt = ExitStack()
            try:
                nodes = attempt.enter_context(_one_try(cpus))
            except NodesNotStarted as error:
                failures.append(str(error))
                continue
            stack.enter_context(attempt)
            yield nodes
            return
        raise NodesNotStarted("\n".join(failures))


@contextmanager
def _one_try(cpus: int) -> Iterator[TwoNodes]:
    # Not below a test's own folder: the path of a socket has 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        # Not the argument `temp_dir`: the address would be noted in /tmp/ray, for all to find.
        environment = {"RAY_USAGE_STATS_ENABLED": "0"} | os.environ | {"RAY_TMPDIR": folder}
        with (
            Path(folder, "nodes.log").open("w+") as log,
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.micro.ray_nodes", str(cpus)],
                cwd=REPOSITORY,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            ) as process,
        ):
            try:
                late = threading.Timer(START_S, _kill_family, (process,))
                late.start()
                try:
                    address = read_value(process, "address")
                except EOFError:
                    log.seek(0)
                    raise NodesNotStarted(f"not in {START_S:g} s: {log.read()[-2000:]}") from None
                finally:
                    late.cancel()
                    late.join()
                yield TwoNodes(address, process)
            finally:
                _end(process)


def read_value(process: "subprocess.Popen[str]", what: str) -> str:
    """The rest of the next line that begins with a word.

    Raises:
        EOFError: the process ended.
    """
    assert process.stdout is not None
    for line in process.stdout:
        word, _, rest = line.strip().partition(" ")
        if word == what:
            return rest
    raise EOFError


def _end(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        _kill_family(process)


def _kill_family(process: "subprocess.Popen[str]") -> None:
    with suppress(psutil.NoSuchProcess):
        _kill(psutil.Process(process.pid).children(recursive=True))
    process.kill()


def _kill(processes: list[psutil.Process]) -> None:
    for each in processes:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    psutil.wait_procs(processes, timeout=10)


def main(cpus: int) -> None:
    """Runs the nodes until the end of input."""
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        settings: dict[str, Any] = {"num_cpus": cpus, "object_store_memory": OBJECT_STORE_BYTES}
        cluster.add_node(**settings, node_ip_address=HEAD_IP, include_dashboard=False)
        second = cluster.add_node(**settings, node_ip_address=SECOND_IP)
        cluster.wait_for_nodes()
        print("address", cluster.address, flush=True)
        for _ in sys.stdin:
            raylets = [psutil.Process(each.process.pid) for each in second.all_processes["raylet"]]
            killed = raylets + [child for one in raylets for child in one.children(recursive=True)]
            _kill(killed)
            print("killed", len(killed), flush=True)
    finally:
        try:
            cluster.shutdown()
        finally:  # a node that failed as it started is none of the cluster's
            _kill(psutil.Process().children(recursive=True))


if __name__ == "__main__":
    main(int(sys.argv[1]))
