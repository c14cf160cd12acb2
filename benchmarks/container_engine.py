"""Images and containers of the server, by a command that is used like docker.

For `benchmarks/container.py` and the tests in `tests/container`.
"""

import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

LIMIT_S = 60
BUILD_S = 1500
NO_TOOL = 3  # what .ci/container_tools.sh ends with where there is none
PORT = 8000
POLL_S = 0.02
# As anyone should run it. Memory and swap together are 1 GB: nothing is paged out.
HARDENED = (
    "--read-only",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--memory=1g",
    "--memory-swap=1g",
    "--pids-limit=256",
)


class DidNotStart(Exception):
    """The server in a container was never ready; the message is its log."""


class NoTool(Exception):
    """There is no Docker engine and no podman, and none can be installed; the message says why."""


@dataclass(frozen=True, slots=True)
class Engine:
    """A container tool.

    Attributes:
        command: used like docker.
        repo: the checkout that images are built from.
    """

    command: str
    repo: Path

    @classmethod
    def find(cls, repo: Path) -> "Engine":
        """Asks `.ci/container_tools.sh`, which may install one.

        Raises:
            NoTool: there is none.
        """
        script = str(repo / ".ci" / "container_tools.sh")
        found = subprocess.run([script, "tool"], capture_output=True, text=True, timeout=BUILD_S)
        if found.returncode == NO_TOOL:
            raise NoTool(found.stderr.strip().splitlines()[-1])
        assert found.returncode == 0, found.stderr
        return cls(found.stdout.strip(), repo)

    def build(self, tag: str, *flags: str) -> str:
        """Builds an image from the checkout; returns its tag."""
        script = str(self.repo / ".ci" / "container_tools.sh")
        command = [script, "build", "-t", tag, *flags, "."]
        built = subprocess.run(
            command, cwd=self.repo, capture_output=True, text=True, timeout=BUILD_S
        )
        assert built.returncode == 0, "\n".join((built.stdout + built.stderr).splitlines()[-40:])
        return tag

    def run(self, *arguments: str, limit_s: float = LIMIT_S) -> subprocess.CompletedProcess[str]:
        """One command of the tool, to its end."""
        return subprocess.run(
            [self.command, *arguments], capture_output=True, text=True, timeout=limit_s
        )

    def output(self, *arguments: str) -> str:
        """What a command of the tool prints, which must succeed."""
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def inspect_image(self, image: str) -> dict[str, Any]:
        """What the tool knows of an image."""
        (known,) = json.loads(self.output("image", "inspect", image))
        assert isinstance(known, dict)
        return known

    def health_check(self, image: str) -> list[str]:
        """The command of HEALTHCHECK: podman runs it by itself only where systemd is."""
        known = self.inspect_image(image)
        check = known["Config"].get("Healthcheck") or known["Healthcheck"]  # docker, podman
        words: list[str] = check["Test"]
        assert words[0] == "CMD"
        return words[1:]

    def python(self, image: str, script: str, *flags: str) -> Any:
        """Runs a script with the image's Python; returns what it prints, as JSON."""
        return json.loads(
            self.output("run", "--rm", *flags, "--entrypoint=python", image, "-c", script)
        )

    def hardened(self) -> tuple[str, ...]:
        """The flags of `HARDENED`, and none of podman's own writable folders."""
        podman = self.command != "docker"
        return (*HARDENED, "--read-only-tmpfs=false") if podman else HARDENED


@dataclass(frozen=True, slots=True)
class Container:
    """A container that was started.

    Attributes:
        engine: what it was started with.
        name: of the container.
    """

    engine: Engine
    name: str

    @property
    def url(self) -> str:
        """Where its port is reached from here."""
        published = self.engine.output("port", self.name, str(PORT)).splitlines()[0]
        return f"http://{published}"

    def state(self) -> dict[str, Any]:
        """Running, exit code, killed for memory, and so on."""
        state = json.loads(self.engine.output("inspect", "--format={{json .State}}", self.name))
        assert isinstance(state, dict)
        return state

    def logs(self) -> str:
        """All that it wrote until now."""
        done = self.engine.run("logs", self.name)
        return done.stdout + done.stderr

    def events(self, name: str) -> list[dict[str, Any]]:
        """Its log lines of one event."""
        lines = [line for line in self.logs().splitlines() if line.startswith("{")]
        return [event for event in map(json.loads, lines) if event["event"] == name]

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs something inside."""
        return self.engine.run("exec", self.name, *command)

    def signal(self, name: str) -> None:
        """Sends a signal to its first process."""
        self.engine.output("kill", f"--signal={name}", self.name)

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        return int(self.engine.output("wait", self.name).splitlines()[-1])

    def wait_until_ready(self) -> None:
        """Polls, as a container gives no event.

        Raises:
            DidNotStart: it ended, or took longer than `LIMIT_S`.
        """
        deadline = time.monotonic() + LIMIT_S
        with httpx.Client(base_url=self.url, timeout=LIMIT_S) as client:
            while time.monotonic() < deadline:
                try:
                    if client.get("/health/ready").status_code == 200:
                        return
                except httpx.TransportError:
                    if not self.state()["Running"]:
                        break
                time.sleep(POLL_S)
        raise DidNotStart(self.logs())

    def memory_bytes(self) -> tuple[int, int]:
        """Resident memory of its first process, now and at most until now."""
        status = self.execute("cat", "/proc/1/status").stdout
        told = dict(line.split(":", 1) for line in status.splitlines())
        now, peak = (int(told[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
        return now, peak


@contextmanager
def started(
    engine: Engine, image: str, *flags: str, command: Sequence[str] = ()
) -> Iterator[Container]:
    """Starts the server hardened, with a port on 127.0.0.1, and removes it afterwards."""
    publish = f"--publish=127.0.0.1::{PORT}"
    name = engine.output("run", "--detach", *engine.hardened(), publish, *flags, image, *command)
    container = Container(engine, name.splitlines()[-1])
    try:
        yield container
    finally:
        engine.run("rm", "--force", container.name)


@contextmanager
def ready(
    engine: Engine, image: str, *flags: str, command: Sequence[str] = ()
) -> Iterator[tuple[Container, httpx.Client]]:
    """Starts the server, and waits until it is ready."""
    with started(engine, image, *flags, command=command) as container:
        container.wait_until_ready()
        with httpx.Client(base_url=container.url, timeout=LIMIT_S) as client:
            yield container, client


def ended(
    engine: Engine, image: str, *flags: str, command: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Starts the server hardened, and waits until it ends by itself."""
    # podman without systemd complains about health checks, on the server's standard error.
    quiet = ("--rm", "--no-healthcheck")
    return engine.run("run", *quiet, *engine.hardened(), *flags, image, *command)
