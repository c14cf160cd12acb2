"""Who takes part, in which arrangement, and how each is started."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.load.envs import ROOT

PEERS = ("mosec", "litserve", "fastapi", "tutorial")


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What a case asks of the NMS; answers hold at most `max_det` boxes above `conf`."""

    conf: float = 0.25
    max_det: int = 300


@dataclass(frozen=True, slots=True)
class Contestant:
    """A server that can be started.

    Attributes:
        name: as the tables call it.
        arrangement: in words.
        command: of the process.
        environment: beside the driver's own.
        port: that it was told to listen on.
        path: where it takes images, with the query.
    """

    name: str
    arrangement: str
    command: list[str]
    port: int
    path: str
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Arrangement:
    """Workers of a peer, and the threads of one inference in each."""

    workers: int
    threads: int
    spinning: bool

    def __str__(self) -> str:
        """In words, for the tables."""
        plural = "s" if self.workers > 1 else ""
        waits = ", spinning" if self.spinning else ""
        return f"{self.workers} worker{plural} of {self.threads} thread(s){waits}"


def saturated(cpus: int) -> Arrangement:
    """What brings a peer the most images a second: one one-thread worker for each CPU."""
    return Arrangement(cpus, 1, spinning=False)


def lone(cpus: int) -> Arrangement:
    """What brings a peer's lone client the shortest wait: every CPU for its request."""
    return Arrangement(1, cpus, spinning=cpus > 1)


def ours(
    model: Path,
    thresholds: Thresholds,
    port: int,
    *,
    name: str = "ours",
    python: str = sys.executable,
) -> Contestant:
    """Our server as it is, no setting tuned. A folder as `model` lets it choose the precision."""
    command = [python, "-m", "server", "--port", str(port), "--model", str(model.resolve())]
    path = f"/detect?conf={thresholds.conf}&max_det={thresholds.max_det}"
    return Contestant(name, "defaults", command, port, path)


def peer(
    name: str,
    python: Path,
    artifact: Path,
    thresholds: Thresholds,
    arrangement: Arrangement,
    port: int,
) -> Contestant:
    """One of mosec, litserve and fastapi around `peers/pipeline.py`."""
    environment = {
        "PEER_ARTIFACT": str(artifact.resolve()),
        "PEER_WORKERS": str(arrangement.workers),
        "PEER_THREADS": str(arrangement.threads),
        "PEER_SPINNING": str(int(arrangement.spinning)),
        "PEER_CONF": str(thresholds.conf),
        "PEER_MAX_DET": str(thresholds.max_det),
        "PEER_PORT": str(port),
    }
    command = [str(python), "-m", f"benchmarks.serving.peers.{name}_app"]
    path = {"mosec": "/inference", "litserve": "/predict", "fastapi": "/detect"}[name]
    if name == "mosec":
        # Its own defaults of time, length of queue and size of body are left as they are.
        command += ["--port", str(port), "--address", "127.0.0.1", "--log-level", "warning"]
    return Contestant(name, str(arrangement), command, port, path, environment)


def tutorial(python: Path, checkpoint: Path, thresholds: Thresholds, port: int) -> Contestant:
    """FastAPI that calls ultralytics with the checkpoint which the artifact was made of."""
    environment = {
        "PEER_CHECKPOINT": str(checkpoint.resolve()),
        "PEER_CONF": str(thresholds.conf),
        "PEER_MAX_DET": str(thresholds.max_det),
        "PEER_PORT": str(port),
        "YOLO_AUTOINSTALL": "false",
    }
    command = [str(python), "-m", "benchmarks.serving.peers.tutorial_app"]
    return Contestant("tutorial", "torch's threads", command, port, "/detect", environment)


def environment_of(contestant: Contestant) -> dict[str, str]:
    """The process' environment: the driver's, without settings of our server, and its own."""
    kept = {k: v for k, v in os.environ.items() if not k.upper().startswith("YOLO_FLA_")}
    return {
        **kept,
        "PYTHONPATH": str(ROOT),
        "ORT_DISABLE_TELEMETRY": "1",
        **contestant.environment,
    }
