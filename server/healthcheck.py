"""`python -m server.healthcheck`: ends with 0 if this container's server is ready, else with 1.

For a container's HEALTHCHECK, so it starts in some ten milliseconds: it takes little of the
standard library and nothing of the server, and so reads the two settings that it needs by itself.
"""

import os
import socket
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

TIMEOUT_S = 4.0
# Of the container's first process: the server, or an init that was told to start it.
COMMAND = Path("/proc/1/cmdline")
# Addresses that mean all, and where the server is reached then.
ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def main() -> int:
    """Asks, and says in one line what is wrong."""
    host, port = address(command_of(COMMAND), os.environ)
    problem = ask(host, port)
    if problem:
        print(f"not ready at {host}:{port}: {problem}", file=sys.stderr)
    return 1 if problem else 0


def address(command: Sequence[str], environment: Mapping[str, str]) -> tuple[str, str]:
    """Where the server listens, host and port: by its flags, its environment, or by default."""
    host = chosen("host", command, environment) or "127.0.0.1"
    port = chosen("port", command, environment) or "8000"
    return ANYWHERE.get(host, host), port


def chosen(name: str, command: Iterable[str], environment: Mapping[str, str]) -> str | None:
    """The value of one setting, as `server.settings` would take it; None where none is given."""
    value = next(
        (environment[key] for key in environment if key.upper() == f"YOLO_FLA_{name.upper()}"), None
    )
    words = iter(command)
    for word in words:
        flag, equals, text = word.partition("=")
        if flag == f"--{name}":
            value = text if equals else next(words, None)
    return value


def ask(host: str, port: str) -> str:
    """One request; "" where the answer is 200, else what was answered or happened instead."""
    request = f"GET /health/ready HTTP/1.0\r\nHost: {host}\r\n\r\n".encode()
    try:
        with socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as connection:
            connection.sendall(request)
            status = connection.makefile("rb").readline().decode("latin-1").strip()
    except (OSError, ValueError, OverflowError) as error:
        return str(error) or type(error).__name__
    return "" if status.split(" ")[1:2] == ["200"] else status or "no answer"


def command_of(file: Path) -> list[str]:
    """The words of a process's command line, as Linux tells them; none where it does not."""
    try:
        return file.read_text(errors="replace").split("\0")
    except OSError:
        return []


if __name__ == "__main__":
    sys.exit(main())
