"""`python -m server` as a process of its own, and what it logs."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

LIMIT_S = 30


@dataclass
class ServerProcess:
    """A running `python -m server`, and what it logged."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    _news: threading.Condition = field(default_factory=threading.Condition)
    _ended: bool = False

    def follow(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._news:
                self.lines.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def events(self, name: str) -> list[dict[str, Any]]:
        parsed = [json.loads(line) for line in self.lines if line.startswith("{")]
        return [event for event in parsed if event["event"] == name]

    def wait_for(self, name: str, count: int = 1, limit_s: float = LIMIT_S) -> dict[str, Any]:
        with self._news:
            there = self._news.wait_for(
                lambda: self._ended or len(self.events(name)) >= count, limit_s
            )
        assert there, self.lines
        assert len(self.events(name)) >= count, self.lines
        return self.events(name)[count - 1]

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(LIMIT_S)


def environment(**variables: str) -> dict[str, str]:
    return os.environ | {"YOLO_FLA_DEVICE": "cpu", "YOLO_FLA_INTRA_OP_THREADS": "1"} | variables


@contextmanager
def following(
    command: Sequence[str], folder: Path, variables: Mapping[str, str]
) -> Iterator[ServerProcess]:
    with subprocess.Popen(
        command, cwd=folder, env=variables, stderr=subprocess.PIPE, text=True
    ) as process:
        server = ServerProcess(process)
        reader = threading.Thread(target=server.follow)
        reader.start()
        try:
            yield server
        finally:
            process.kill()
            process.wait()
            reader.join()


@contextmanager
def started(
    repo: Path,
    artifact: Path,
    *flags: str,
    program: Sequence[str] = ("-m", "server"),
    **variables: str,
) -> Iterator[ServerProcess]:
    command = [sys.executable, *program, "--model", str(artifact), "--port", "0", *flags]
    with following(command, repo, environment(**variables)) as server:
        yield server


@contextmanager
def ready(
    repo: Path,
    artifact: Path,
    *flags: str,
    program: Sequence[str] = ("-m", "server"),
    **variables: str,
) -> Iterator[tuple[ServerProcess, httpx.Client]]:
    with started(repo, artifact, *flags, program=program, **variables) as server:
        server.wait_for("ready")
        url = server.wait_for("listening")["url"]
        with httpx.Client(base_url=url, timeout=LIMIT_S) as client:
            yield server, client


def run_to_the_end(repo: Path, *flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "server", "--port", "0", *flags],
        cwd=repo,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
