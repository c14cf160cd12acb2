"""`python -m server` as a process that scenarios load, signal and read the log of."""

import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.load.contestants import Contestant, environment_of
from benchmarks.load.envs import ROOT
from benchmarks.load.http_client import Answer, Client, NoAnswer, Request, request_wire
from benchmarks.load.process import END_S, POLL_S, START_S, DidNotStart

QUIET_S = 10.0


class ServerEnded(Exception):
    """It ended in the midst of a scenario; the message has its exit code and its last lines."""


# name -> labels, sorted by name -> value
Scrape = dict[str, dict[tuple[tuple[str, str], ...], float]]


@dataclass(frozen=True, slots=True)
class Server:
    """One that is ready.

    Attributes:
        url: of its root.
        pid: of its one process.
        process: to be waited for.
        log: the file of its log, JSON lines.
        start_s: from its start until it was ready.
    """

    url: str
    pid: int
    process: Process
    log: Path
    start_s: float

    def events(self, name: str) -> list[dict[str, Any]]:
        """The lines that it has logged of one event."""
        return _events(self.log, name)

    async def get(self, path: str) -> Answer:
        """Asks on a connection of its own.

        Raises:
            NoAnswer: there is none.
        """
        async with Client(self.url) as client:
            return await client.ask(Request(request_wire("GET", path)))

    async def scrape(self) -> Scrape:
        """All metrics."""
        return parse_metrics((await self.get("/metrics")).body.decode())

    async def health(self) -> dict[str, Any]:
        """What `/health` says."""
        health: dict[str, Any] = json.loads((await self.get("/health")).body)
        return health

    async def quiet(self, limit_s: float = QUIET_S) -> bool:
        """Waits until nothing is under way; false when the time passed before."""
        end_s = time.perf_counter() + limit_s
        while time.perf_counter() < end_s:
            metrics = await self.scrape()
            queue = metrics["detector_queue_images"][()]
            inflight = metrics["detector_inflight_requests"][()] - 1  # the scrape itself
            if queue == 0 and inflight == 0:
                return True
            await asyncio.sleep(0.05)
        return False

    async def end(self, limit_s: float) -> tuple[int | None, float]:
        """Sends SIGTERM and waits; the exit code, None past the limit, and the seconds."""
        began_s = time.perf_counter()
        self.process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(limit_s):
                code: int | None = await self.process.wait()
        except TimeoutError:
            code = None
        return code, time.perf_counter() - began_s


def parse_metrics(text: str) -> Scrape:
    """Prometheus' text format; histograms' and counters' series have their own full names."""
    scrape: Scrape = {}
    for family in text_string_to_metric_families(text):
        for each in family.samples:
            labels = tuple(sorted(each.labels.items()))
            scrape.setdefault(each.name, {})[labels] = each.value
    return scrape


@asynccontextmanager
async def serving(flags: Sequence[str], python: str = sys.executable) -> AsyncIterator[Server]:
    """Starts a server on a free port, waits until it is ready, and ends it afterwards.

    Args:
        flags: of `python -m server`.
        python: whose environment can serve.

    Raises:
        DidNotStart: it ended, or was not ready in time.
        ServerEnded: it ended while the block ran.
    """
    command = [python, "-m", "server", "--port=0", *flags, "--log-format=json"]
    environment = environment_of(Contestant("ours", "", command, 0, ""))
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        began_s = time.perf_counter()
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *command,
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            while not (_events(log, "ready") and _events(log, "listening")):
                if process.returncode is not None or time.perf_counter() - began_s > START_S:
                    end = log.read_text(errors="replace")[-2000:]
                    raise DidNotStart(f"{' '.join(command)}: {end}")
                await asyncio.sleep(POLL_S)
            url = _events(log, "listening")[0]["url"]
            yield Server(url, process.pid, process, log, time.perf_counter() - began_s)
        except NoAnswer as error:
            # The transport of the process hears of its end a little later than its clients.
            with suppress(TimeoutError):
                async with asyncio.timeout(END_S):
                    await process.wait()
            if process.returncode is None:
                raise
            end = log.read_text(errors="replace")[-4000:]
            raise ServerEnded(f"exit code {process.returncode}: {end}") from error
        finally:
            await _end(process)


def _events(log: Path, name: str) -> list[dict[str, Any]]:
    events = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        # Most lines are of other events, and a last one may be half written.
        if f'"{name}"' in line and line.endswith("}"):
            event = json.loads(line)
            if event["event"] == name:
                events.append(event)
    return events


async def _end(process: Process) -> None:
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout(END_S):
                await process.wait()
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def answered(server: Server, request: Request) -> Answer:
    """One request to a server that has to answer it.

    Raises:
        NoAnswer: it did not.
    """
    async with Client(server.url, timeout_s=60.0) as client:
        return await client.ask(request)
