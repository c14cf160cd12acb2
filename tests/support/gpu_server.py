"""`python -m server` with the default weights on a GPU, as a process of its own."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import httpx

from tests.support.processes import ServerProcess, environment, started
from tests.support.sample_images import REPO

START_S = 180  # libraries of 2 GB are loaded, and every shape is run
SERVER = ("-m", "server")


@contextmanager
def ready(
    device: str, *flags: str, program: Sequence[str] = SERVER, **variables: str
) -> Iterator[tuple[ServerProcess, httpx.Client]]:
    """A server that takes requests, and a client of it."""
    settings = {"YOLO_FLA_DEVICE": device, "YOLO_FLA_MAX_BATCH_SIZE": "4"} | variables
    with started(REPO, REPO / "weights", *flags, program=program, **settings) as server:
        event = server.wait_for("ready", limit_s=START_S)
        print("ready:", event)
        url = server.wait_for("listening")["url"]
        with httpx.Client(base_url=url, timeout=60) as client:
            yield server, client


def run_to_the_end(
    *arguments: str, limit_s: float = START_S, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs Python in the checkout until it ends by itself; prints what it said."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=REPO,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )
    print(f"{arguments}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def samples() -> list[tuple[str, bytes]]:
    """The files of samples/, by name."""
    return [(path.name, path.read_bytes()) for path in sorted((REPO / "samples").glob("*.jpg"))]
