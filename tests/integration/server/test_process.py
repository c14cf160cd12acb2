"""The server as a process of its own: ports, signals, exit codes, log lines."""

import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from server.inference.artifact import load_artifact
from tests.support.artifacts import CELL, endless_artifact, tiny_artifact
from tests.support.processes import LIMIT_S, environment, ready, run_to_the_end, started
from tests.support.serving import one_cell

LOSS_WAIVED = "this model was not shown to keep its accuracy (--accept-loss)"


@pytest.fixture(scope="module")
def slow_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with so many cells that one call takes a noticeable time."""
    side = 128 * CELL
    path = tmp_path_factory.mktemp("slow") / "slow.onnx"
    return tiny_artifact(path, input_hw=(side, side), buckets=[(side, side)])


@contextmanager
def slow_request(client: httpx.Client) -> Iterator[socket.socket]:
    """A request under way whose body does not end."""
    assert client.base_url.port is not None
    address = ("127.0.0.1", client.base_url.port)
    with socket.create_connection(address, timeout=LIMIT_S) as slow:
        slow.sendall(b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc")
        while "detector_inflight_requests 2.0" not in client.get("/metrics").text:
            pass
        yield slow


def test_start_ready_detect_and_stop(repo_dir: Path, artifact: Path) -> None:
    with ready(repo_dir, artifact) as (server, client):
        assert client.base_url.port != 0
        response = client.post("/detect", content=one_cell(), headers={"x-request-id": "mine"})
        assert response.status_code == 200
        assert len(response.json()["results"][0]["detections"]) == 1
        assert "server" not in response.headers
        assert client.get("/health").json()["provider"] == "CPUExecutionProvider"
        assert server.stop() == 0
    (access,) = [event for event in server.events("request") if event["path"] == "/detect"]
    assert (access["request_id"], access["status"], access["images"]) == ("mine", 200, 1)
    assert all(line.startswith("{") for line in server.lines), server.lines
    assert not server.events(LOSS_WAIVED)


def test_a_request_that_runs_at_sigterm_is_answered(repo_dir: Path, slow_artifact: Path) -> None:
    with ready(repo_dir, slow_artifact) as (server, client):
        answers: list[httpx.Response] = []
        image = one_cell((CELL, CELL), (0, 0))
        files = [("image", (f"{i}.png", image)) for i in range(8)]
        asking = threading.Thread(
            target=lambda: answers.append(client.post("/detect", files=files))
        )
        asking.start()
        with httpx.Client(base_url=client.base_url) as other:
            while other.get("/health").json()["queue_images"] == 0:
                assert not answers, "the model was too fast to be caught running"
        assert server.stop() == 0
        asking.join(LIMIT_S)
        assert [answer.status_code for answer in answers] == [200]
        with pytest.raises(httpx.ConnectError):
            httpx.get(client.base_url.join("/health"))


def test_a_request_longer_than_the_drain_is_told_so(repo_dir: Path, artifact: Path) -> None:
    with ready(repo_dir, artifact, "--drain-timeout-s=0.1") as (server, client):
        with slow_request(client) as slow:
            server.process.send_signal(signal.SIGTERM)
            answer = slow.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 503"), answer
        assert b'"code": "draining"' in answer
        assert server.process.wait(LIMIT_S) == 0


def test_sigint_ends_it_too(repo_dir: Path, artifact: Path) -> None:
    with ready(repo_dir, artifact) as (server, _):
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(LIMIT_S) == 0


# Sends itself a signal when it imports what serves: the model is being loaded by then.
SIGNAL_AT_AN_IMPORT = """
import os, signal, sys
from server.__main__ import main

class Finder:
    def find_spec(self, name, path, target=None):
        if name == "server.run":
            os.kill(os.getpid(), signal.Signals[os.environ["SIGNAL"]])

sys.meta_path.insert(0, Finder())
main(sys.argv[1:])
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_before_it_listens_ends_it_without_a_word(
    repo_dir: Path, tmp_path: Path, name: str
) -> None:
    endless = endless_artifact(tmp_path / "endless.onnx")
    program = ("-c", SIGNAL_AT_AN_IMPORT)
    with started(repo_dir, endless, program=program, SIGNAL=name) as server:
        assert server.process.wait(LIMIT_S) == 0
    assert server.lines == []


def test_sighup_takes_new_keys_and_a_bad_file_changes_nothing(
    repo_dir: Path, artifact: Path, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# who: one\n\nkey-one\n", encoding="utf-8")
    with ready(repo_dir, artifact, f"--api-keys-file={keys}") as (server, client):

        def status(key: str) -> int:
            headers = {"x-api-key": key}
            return client.post("/detect", content=one_cell(), headers=headers).status_code

        assert (status("key-one"), status("key-two")) == (200, 401)
        keys.write_text("key-two\n", encoding="utf-8")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("reloaded")
        assert (status("key-one"), status("key-two")) == (401, 200)
        keys.write_text("# nobody\n", encoding="utf-8")
        server.process.send_signal(signal.SIGHUP)
        refused = server.wait_for("sighup_ignored")
        assert refused["code"] == "reload_failed"
        assert "holds no key" in refused["reason"]
        assert (status("key-one"), status("key-two")) == (401, 200)
        assert server.stop() == 0
    assert not [line for line in server.lines if "key-one" in line or "key-two" in line]


def test_sighup_before_ready_is_ignored(repo_dir: Path, tmp_path: Path) -> None:
    with started(repo_dir, endless_artifact(tmp_path / "endless.onnx")) as server:
        server.wait_for(f"Started server process [{server.process.pid}]")
        server.process.send_signal(signal.SIGHUP)
        assert server.wait_for("sighup_ignored")["code"] == "not_ready"
        assert server.stop() == 0


def test_while_draining_sighup_and_another_sigterm_are_ignored_and_ctrl_c_ends_it(
    repo_dir: Path, artifact: Path
) -> None:
    with (
        ready(repo_dir, artifact, "--drain-timeout-s=3600") as (server, client),
        slow_request(client),
    ):
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("Shutting down")
        server.process.send_signal(signal.SIGHUP)
        assert server.wait_for("sighup_ignored")["code"] == "draining"
        server.process.send_signal(signal.SIGTERM)  # as make hands on its own
        server.wait_for("signal_while_draining")
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(LIMIT_S) == 0


@pytest.mark.parametrize("closed", [True, False])
def test_a_server_ends_with_its_terminal_and_reloads_while_that_is_there(
    repo_dir: Path, artifact: Path, closed: bool
) -> None:
    ours, its = pty.openpty()
    command = [sys.executable, "-m", "server", "--model", str(artifact), "--port", "0"]
    with (
        subprocess.Popen(
            ["setsid", "--ctty", *command],
            cwd=repo_dir,
            stdin=its,
            stderr=subprocess.PIPE,
            env=environment(),
            text=True,
        ) as process,
    ):
        os.close(its)
        assert process.stderr is not None
        lines = iter(process.stderr)
        assert any('"event":"ready"' in line.replace('": "', '":"') for line in lines)
        if closed:
            os.close(ours)  # the kernel sends SIGHUP
        else:
            process.send_signal(signal.SIGHUP)
            assert any("reloaded" in line for line in lines)
            process.send_signal(signal.SIGTERM)
        for _ in lines:
            pass
        assert process.wait(LIMIT_S) == 0
    if not closed:
        os.close(ours)


@pytest.mark.parametrize(
    ("flags", "variables", "message"),
    [
        (["--model", "missing.onnx"], {}, r"missing\.onnx"),
        (["--model", "README.md"], {}, r"README\.md: not a complete ONNX file"),
        (["--port", "x"], {}, r"--port: .*integer"),
        (["--prot", "1"], {}, r"--prot"),
        (["--api-keys-file", "no"], {}, r"api_keys_file .*no: No such file or directory"),
        ([], {"YOLO_FLA_PROT": "1"}, r"YOLO_FLA_PROT; did you mean YOLO_FLA_PORT\?"),
        ([], {"YOLO_FLA_MAX_BATCH_SIZE": "0"}, r"YOLO_FLA_MAX_BATCH_SIZE: .*greater than"),
        (["--host", "203.0.113.1"], {}, r"can't listen on 203\.0\.113\.1:\d+: Cannot assign"),
        (["--host", "300.1.1.1"], {}, r"can't listen on 300\.1\.1\.1:\d+: (?!Unknown)[^(]+$"),
    ],
)
def test_what_is_wrong_at_the_start_is_said_in_one_line(
    repo_dir: Path, artifact: Path, flags: list[str], variables: dict[str, str], message: str
) -> None:
    ended = run_to_the_end(repo_dir, "--model", str(artifact), *flags, **variables)
    assert ended.returncode == 2, ended
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: ")
    assert re.search(message, line), line


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no socket of both IPv4 and IPv6")
@pytest.mark.parametrize("flags", [(), ("--http-workers=2",)], ids=["one", "several"])
def test_the_address_of_all_is_that_of_ipv4_too(
    repo_dir: Path, artifact: Path, flags: tuple[str, ...]
) -> None:
    with ready(repo_dir, artifact, "--host=::", *flags) as (server, client):
        assert client.base_url.host == "::"
        for host in ("127.0.0.1", "[::1]"):
            url = f"http://{host}:{client.base_url.port}/detect"
            assert httpx.post(url, content=one_cell(), timeout=LIMIT_S).status_code == 200
        assert server.stop() == 0
    detections = [event for event in server.events("request") if event["path"] == "/detect"]
    assert {event["client"] for event in detections} == {"127.0.0.1", "::1"}


def test_a_port_that_is_taken_is_said_in_one_line(repo_dir: Path, artifact: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = run_to_the_end(repo_dir, "--model", str(artifact), "--port", port)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line == f"error: can't listen on 127.0.0.1:{port}: Address already in use"


def test_a_model_that_was_not_shown_to_keep_its_accuracy_is_served_with_a_warning(
    repo_dir: Path, artifact: Path, tmp_path: Path
) -> None:
    certificate = load_artifact(artifact).metadata.certificate
    accepted = certificate.model_copy(update={"verdict": "loss_accepted"})
    lossy = tiny_artifact(tmp_path / "lossy.onnx", precision="int8", certificate=accepted)
    with ready(repo_dir, lossy) as (server, _):
        assert server.wait_for(LOSS_WAIVED)["level"] == "warning"


def test_it_starts_without_training_or_conversion_libraries(repo_dir: Path, artifact: Path) -> None:
    code = (
        "import sys; import server.__main__, server.run; "
        "print(sorted({'torch', 'onnx', 'ultralytics', 'PIL'} & set(sys.modules)))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=repo_dir, capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == "[]"


def test_an_inference_that_never_returns_does_not_keep_the_process(
    repo_dir: Path, tmp_path: Path
) -> None:
    with started(repo_dir, endless_artifact(tmp_path / "endless.onnx")) as server:
        server.wait_for(f"Started server process [{server.process.pid}]")
        assert server.stop() == 0


# `python -m server` on a device that is lost with the first batch; no CPU can be lost like that.
ON_A_LOST_DEVICE = """
import sys
from server.serving import local_model
from server.__main__ import main
from server.inference.engine import Engine
from tests.support.serving import LosingSession

def open_losing(artifacts, settings):
    session = LosingSession(artifacts[0], settings)
    return Engine(artifacts[0], "a test's", session, max_batch_size=1)

local_model.open_onnx_engine = open_losing
sys.exit(main(sys.argv[1:]))
"""


def test_a_lost_device_ends_the_process_with_the_reason(repo_dir: Path, artifact: Path) -> None:
    with ready(repo_dir, artifact, program=("-c", ON_A_LOST_DEVICE)) as (server, client):
        with slow_request(client) as slow:
            assert client.post("/detect", content=one_cell()).status_code == 500
            assert slow.makefile("rb").read().startswith(b"HTTP/1.1 503")
        assert server.process.wait(LIMIT_S) == 1
    (failed,) = server.events("service_failed")
    assert "illegal memory access" in failed["reason"]
    assert "illegal memory access" in failed["exception"]


def test_what_the_doctor_says_reaches_a_pipe(repo_dir: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "server", "doctor", "--device=cpu", "--port=0"],
        cwd=repo_dir,
        env=environment(PYTHONUNBUFFERED=""),  # many a container and shell sets it
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "The server would start" in done.stdout


@pytest.mark.parametrize("processes", [1, 2])
def test_the_logged_client_is_who_connected_whatever_a_header_says(
    repo_dir: Path, artifact: Path, processes: int
) -> None:
    with ready(repo_dir, artifact, f"--http-workers={processes}") as (server, client):
        headers = {"x-forwarded-for": "203.0.113.9", "x-forwarded-proto": "https"}
        assert client.get("/model", headers=headers).status_code == 200
        assert server.wait_for("request")["client"] == "127.0.0.1"
