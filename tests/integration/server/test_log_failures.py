"""A log that can't be written costs lines, and nothing else."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.processes import LIMIT_S, environment, run_to_the_end
from tests.support.serving import one_cell

CLIENTS, REQUESTS = 4, 1000


def until(condition: Callable[[], bool]) -> None:
    """Asks another process until something holds."""
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@contextmanager
def unwritable(kind: str) -> Iterator[int]:
    """A file for a log: "full", a "stalled" pipe that nobody reads, or a "closed" one."""
    if kind == "full":
        file = os.open("/dev/full", os.O_WRONLY)
        yield file
        os.close(file)
        return
    source, sink = os.pipe()
    if kind == "closed":
        os.close(source)
    yield sink
    os.close(sink)
    if kind == "stalled":
        os.close(source)


def port_of(process: psutil.Process) -> int | None:
    """Where it listens; the log can't say."""
    listening = [c for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    return int(listening[0].laddr.port) if listening else None


@contextmanager
def logging_to(log: int, repo: Path, artifact: Path, processes: int) -> Iterator[
    tuple[subprocess.Popen[bytes], httpx.Client]
]:  # fmt: skip
    """A server that is ready, with all its processes."""
    flags = (f"--http-workers={processes}", "--port=0", "--model", str(artifact))
    command = [sys.executable, "-m", "server", *flags]
    with subprocess.Popen(command, cwd=repo, env=environment(), stderr=log) as started:
        server = psutil.Process(started.pid)
        try:
            until(lambda: port_of(server) is not None)
            url = f"http://127.0.0.1:{port_of(server)}"
            with httpx.Client(base_url=url, timeout=LIMIT_S) as client:
                until(lambda: client.get("/health/ready").status_code == 200)
                until(lambda: value(client, "detector_http_workers") == processes)
                yield started, client
        finally:
            started.kill()  # other processes end with it


def value(client: httpx.Client, sample: str) -> float:
    """One sample of the metrics, by its name and labels."""
    (found,) = re.findall(rf"^{re.escape(sample)} (.*)$", client.get("/metrics").text, re.MULTILINE)
    return float(found)


def has_reloaded(client: httpx.Client, times: int) -> bool:
    return value(client, 'detector_reloads_total{outcome="ok"}') == times


def restarted(client: httpx.Client, processes: int) -> bool:
    with suppress(httpx.TransportError):  # the one that was killed had the connection
        restarts = value(client, "detector_worker_restarts_total")
        return restarts == 1 and value(client, "detector_http_workers") == processes
    return False


def ask(url: httpx.URL) -> list[int]:
    with httpx.Client(base_url=url, timeout=LIMIT_S) as client:
        return [client.get("/model").status_code for _ in range(REQUESTS // CLIENTS)]


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("kind", ["full", "stalled", "closed"])
def test_a_server_answers_reloads_and_drains_whatever_becomes_of_its_log(
    repo_dir: Path, artifact: Path, kind: str, processes: int
) -> None:
    with (
        unwritable(kind) as log,
        logging_to(log, repo_dir, artifact, processes) as (server, client),
        ThreadPoolExecutor(CLIENTS) as threads,
    ):
        answers = list(threads.map(ask, [client.base_url] * CLIENTS))
        assert [each for some in answers for each in some] == [200] * REQUESTS
        port = client.base_url.port
        assert port is not None
        with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as rude:
            rude.sendall(b"no HTTP at all\r\n\r\n")
            assert rude.makefile("rb").read().startswith(b"HTTP/1.1 400")
        for reloads in (1, 2):
            server.send_signal(signal.SIGHUP)
            until(partial(has_reloaded, client, reloads))
        if processes > 1:
            psutil.Process(server.pid).children()[0].kill()
            until(lambda: restarted(client, processes))
        assert client.post("/detect", content=one_cell()).status_code == 200
        # A stalled pipe takes 64 KB, and each process' queue the rest of these.
        assert (value(client, "detector_log_lines_dropped_total") > 0) == (kind != "stalled")
        server.terminate()
        assert server.wait(LIMIT_S) == 0


@pytest.mark.parametrize(
    ("kind", "flag"),
    [
        ("full", "--prot=1"),  # before there is a log
        ("full", "--host=203.0.113.1"),
        ("stalled", "--model=README.md"),
        ("closed", "--model=README.md"),
    ],
)
def test_a_start_that_fails_ends_with_its_code_where_it_cannot_say_why(
    repo_dir: Path, artifact: Path, kind: str, flag: str
) -> None:
    command = [sys.executable, "-m", "server", "--port=0", "--model", str(artifact), flag]
    with unwritable(kind) as log:
        ended = subprocess.run(
            command, cwd=repo_dir, env=environment(), stderr=log, timeout=LIMIT_S, check=False
        )
    assert ended.returncode == 2


def test_a_start_without_standard_error_ends_with_its_code(repo_dir: Path) -> None:
    command = [sys.executable, "-m", "server", "--model=README.md"]
    ended = subprocess.run(
        ["sh", "-c", 'exec "$@" 2>&-', "sh", *command],
        cwd=repo_dir,
        env=environment(),
        capture_output=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (2, b"")


def test_the_reason_of_a_failed_start_is_the_last_line_after_those_of_the_log(
    repo_dir: Path, artifact: Path
) -> None:
    ended = run_to_the_end(repo_dir, "--model", str(artifact), YOLO_FLA_DEVICE="cuda:99")
    *log, last = ended.stderr.splitlines()
    assert last.startswith("error: ")
    assert "yolov8-fla[gpu]" in last
    assert log
    assert all(line.startswith("{") for line in log)
