"""The life of one contestant: start, first answer, end."""

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from benchmarks.load.contestants import Contestant, environment_of
from benchmarks.load.envs import ROOT
from benchmarks.load.http_client import Client, NoAnswer, Request
from benchmarks.load.loops import run_light

START_S = 120.0
END_S = 10.0
POLL_S = 0.02


class DidNotStart(Exception):
    """It ended, or gave no right answer in time; the message has the end of its output."""


@dataclass(frozen=True, slots=True)
class Running:
    """A contestant that has answered its first request.

    Attributes:
        url: of its root.
        pid: of the process that was started; others may be below it.
        start_s: from the start of the process to the first answer.
    """

    url: str
    pid: int
    start_s: float


def free_port() -> int:
    """A TCP port that nobody listens on now: not every peer can tell which one it took."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


@contextmanager
def running(contestant: Contestant, first: Request) -> Iterator[Running]:
    """Starts a contestant, waits until it answers `first` with 200, and ends it afterwards.

    Raises:
        DidNotStart: it did not.
    """
    with tempfile.TemporaryFile() as output:
        started_s = time.perf_counter()
        process = subprocess.Popen(
            contestant.command,
            cwd=ROOT,
            env=environment_of(contestant),
            stdout=output,
            stderr=output,
            start_new_session=True,  # all that it starts can be ended with it
        )
        try:
            url = f"http://127.0.0.1:{contestant.port}"
            while not run_light(_answers(url, first)):
                if process.poll() is not None or time.perf_counter() - started_s > START_S:
                    output.seek(0)
                    end = output.read().decode(errors="replace")[-2000:]
                    raise DidNotStart(f"{contestant.name} ({contestant.arrangement}): {end}")
                time.sleep(POLL_S)
            yield Running(url, process.pid, time.perf_counter() - started_s)
        finally:
            _end(process)


async def _answers(url: str, request: Request) -> bool:
    async with Client(url, timeout_s=START_S) as client:
        try:
            return (await client.ask(request)).status == 200
        except NoAnswer:
            return False


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(END_S)
    # The session of our own making: what is left of it hangs.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
