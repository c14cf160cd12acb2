import socket
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from server.healthcheck import address, ask, chosen, command_of
from server.settings import Settings

SERVER = ["/opt/venv/bin/python", "-m", "server"]


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def answering(status: int) -> tuple[HTTPServer, list[str]]:
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Not into the tests' output."""

    return HTTPServer(("127.0.0.1", 0), Handler), asked


@pytest.mark.parametrize(
    ("status", "problem"), [(200, ""), (503, "HTTP/1.0 503 Service Unavailable")]
)
def test_the_server_is_asked_whether_it_is_ready(status: int, problem: str) -> None:
    server, asked = answering(status)
    with server:
        Thread(target=server.handle_request).start()
        assert ask("127.0.0.1", str(server.server_port)) == problem
    assert asked == ["/health/ready"]


def test_a_port_where_nobody_listens_is_a_problem(unused_port: int) -> None:
    assert "refused" in ask("127.0.0.1", str(unused_port))


@pytest.mark.parametrize("port", ["", "tcp://10.0.0.1:80", "70000", "-1"])
def test_a_port_that_is_none_is_a_problem_and_no_traceback(port: str) -> None:
    assert ask("127.0.0.1", port)


def test_without_settings_it_looks_where_the_server_listens_by_default() -> None:
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    assert address(SERVER, {}) == (defaults["host"], str(defaults["port"]))


@pytest.mark.parametrize(
    ("flags", "environment", "expected"),
    [
        ([], {"YOLO_FLA_PORT": "9000"}, "9000"),
        ([], {"yolo_fla_port": "9000"}, "9000"),
        (["--port", "9001"], {"YOLO_FLA_PORT": "9000"}, "9001"),
        (["--port=9001"], {}, "9001"),
        (["--port=1", "--port", "9001"], {}, "9001"),
        (["--log-format", "json", "--port", "9001"], {}, "9001"),
    ],
)
def test_flags_are_stronger_than_the_environment_as_for_the_server(
    flags: list[str],
    environment: dict[str, str],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert chosen("port", [*SERVER, *flags], environment) == expected
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert str(Settings.load(flags, environment).port) == expected


@pytest.mark.parametrize(
    ("host", "reached"),
    [("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("10.1.2.3", "10.1.2.3"), ("localhost", "localhost")],
)
def test_a_server_on_all_addresses_is_reached_on_the_loopback(host: str, reached: str) -> None:
    assert address([*SERVER, "--host", host], {})[0] == reached


def test_the_command_line_is_read_as_linux_tells_it(tmp_path: Path) -> None:
    own = command_of(Path("/proc/self/cmdline"))
    assert any("pytest" in word for word in own)
    assert command_of(tmp_path / "none") == []


def test_it_loads_nothing_of_the_server_and_no_library(repo_dir: Path) -> None:
    script = "import sys, server.healthcheck; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"sys = __import__('sys'); sys.path += ['.']; {script}"],
        cwd=repo_dir,
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(done.stdout.split())
    assert {each for each in loaded if each.startswith("server")} == {
        "server",
        "server.healthcheck",
    }
    slow = {"asyncio", "email", "http", "http.client", "logging", "ssl", "pydantic"}
    assert loaded.isdisjoint(slow)


def test_where_nobody_is_ready_it_ends_with_one_and_says_why(
    repo_dir: Path, unused_port: int
) -> None:
    port = str(unused_port)
    done = subprocess.run(
        [sys.executable, "-m", "server.healthcheck"],
        cwd=repo_dir,
        env={"YOLO_FLA_PORT": port},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"not ready at 127.0.0.1:{port}: ")
    assert done.stderr.count("\n") == 1
