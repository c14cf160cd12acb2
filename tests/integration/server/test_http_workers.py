"""Several HTTP workers before one engine process: as one server to whoever asks it."""

import json
import os
import re
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from server.http.server import LAST_RESORT_S
from server.inference.artifact import load_artifact
from server.workers.engine_process import GRACE_S
from server.workers.supervisor import MAX_CRASHES
from tests.support.artifacts import CELL, endless_artifact, paint, tiny_artifact
from tests.support.processes import LIMIT_S, ServerProcess, ready, run_to_the_end, started
from tests.support.serving import RED, encode, one_cell

KEY = {"x-api-key": "secret"}
# `python -m server` with a model whose calls wait until a file is there.
GATED = """
import os, sys, time
from pathlib import Path
from server.serving import local_model
from server.__main__ import main
from server.inference.engine import Engine
from tests.support.serving import HeldSession

class Gated(HeldSession):
    def run(self, images):
        while not Path(os.environ["GATE"]).exists():
            time.sleep(0.002)
        self.gate.set()
        return super().run(images)

def open_gated(artifacts, settings):
    session = Gated(artifacts[0], settings)
    return Engine(artifacts[0], "a test's", session, max_batch_size=4)

local_model.open_onnx_engine = open_gated
sys.exit(main(sys.argv[1:]))
"""
# `python -m server` with few files, which its limit of connections follows.
FEW_FILES = """
import resource
import sys
from server.__main__ import main

resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))
sys.exit(main(sys.argv[1:]))
"""
# `python -m server` on a device that is lost with the first batch.
LOST = """
import sys
from server.serving import local_model
from server.__main__ import main
from server.inference.engine import Engine
from tests.support.serving import LosingSession

local_model.open_onnx_engine = lambda artifacts, settings: Engine(
    artifacts[0], "a test's", LosingSession(artifacts[0], settings)
)
sys.exit(main(sys.argv[1:]))
"""


def until(condition: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
    """Asks another process until something holds."""
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def value(client: httpx.Client, sample: str) -> float:
    """One sample of the metrics, by its name and labels."""
    (found,) = re.findall(rf"^{re.escape(sample)} (.*)$", client.get("/metrics").text, re.MULTILINE)
    return float(found)


def workers_of(server: ServerProcess) -> list[psutil.Process]:
    return psutil.Process(server.process.pid).children()


@contextmanager
def several(
    repo: Path, artifact: Path, *flags: str, workers: int = 2, program: str = "", **variables: str
) -> Iterator[tuple[ServerProcess, httpx.Client]]:
    """A server all of whose HTTP workers take connections."""
    words = ("-c", program) if program else ("-m", "server")
    flags = (f"--http-workers={workers}", *flags)
    with ready(repo, artifact, *flags, program=words, **variables) as (server, client):
        until(lambda: value(client, "detector_http_workers") == workers)
        try:
            yield server, client
        finally:
            for worker in workers_of(server) if server.process.poll() is None else []:
                worker.kill()


@contextmanager
def each_worker(client: httpx.Client, workers: int = 2) -> Iterator[list[httpx.Client]]:
    """Clients whose connections the processes have in turn."""
    clients = [httpx.Client(base_url=client.base_url, timeout=LIMIT_S) for _ in range(workers)]
    try:
        yield clients
    finally:
        for each in clients:
            each.close()


def without_times(answer: httpx.Response) -> str:
    """The body of an answer, without what differs from request to request."""
    body = answer.json()
    for name in ("timings_ms", "inferenceMs", "processMs", "analysisRoundTripMs", "duration"):
        body.pop(name, None)
    return json.dumps(body)


def ask_all_doors(client: httpx.Client) -> list[str | bytes]:
    cells = {(0, 0): RED, (1, 1): (250, 90, 16)}
    image = encode(paint((64, 64), cells))
    files = [("image", (f"{i}.png", one_cell((64, 96), (0, i)))) for i in range(3)]
    pixels = paint((64, 64), cells)[None]
    head = {
        "inputs": [
            {
                "name": "images",
                "datatype": "UINT8",
                "shape": list(pixels.shape),
                "parameters": {"binary_data_size": pixels.nbytes},
            }
        ],
        "parameters": {"binary_data_output": True},
    }
    text = json.dumps(head).encode()
    raw = client.post(
        "/v2/models/tiny-raw/infer",
        content=text + pixels.tobytes(),
        headers={"Inference-Header-Content-Length": str(len(text))},
    )
    assert raw.status_code == 200, raw.text
    json_bytes = int(raw.headers["Inference-Header-Content-Length"])
    drawn = client.post("/detect?format=image", content=image)
    assert drawn.status_code == 200
    cut_off = client.post("/detect", files=[("image", image), ("image", image[:100])])
    return [
        without_times(client.post("/detect", content=image)),
        without_times(client.post("/detect", files=files)),
        without_times(cut_off),
        without_times(client.post("/v1/vision/detection", files={"image": image})),
        without_times(client.post("/detect?conf=2", content=image)).partition("request_id")[0],
        raw.content[json_bytes:],
        drawn.content,
        json.dumps(client.get("/model").json()),
        json.dumps(client.get("/health").json()),
    ]


def test_all_doors_answer_as_one_process_does(repo_dir: Path, artifact: Path) -> None:
    with ready(repo_dir, artifact) as (_, client):
        expected = ask_all_doors(client)
    with several(repo_dir, artifact) as (server, client):
        with each_worker(client) as clients:
            for each in clients:
                assert ask_all_doors(each) == expected
        assert server.stop() == 0
    answering = {event["process"] for event in server.events("request")}
    assert answering == {"http-1", "http-2"}
    assert len(server.events("listening")) == len(server.events("ready")) == 1
    assert all(json.loads(line)["process"] for line in server.lines), server.lines


def test_the_queue_is_one_and_a_full_one_refuses_at_every_worker(
    repo_dir: Path, artifact: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    flags = ("--max-queue-images=4", "--max-images-per-request=4", "--max-batch-size=4")
    with (
        several(repo_dir, artifact, *flags, program=GATED, GATE=str(gate)) as (server, client),
        each_worker(client) as clients,
        ThreadPoolExecutor(8) as threads,
    ):
        runs = threads.submit(clients[0].post, "/detect", content=one_cell())
        until(lambda: value(client, "detector_active_inferences") == 1)
        files = [("image", one_cell()) for _ in range(2)]
        waiting = [threads.submit(each.post, "/detect", files=files) for each in clients]
        until(lambda: client.get("/health").json()["queue_images"] == 4)
        for each in clients:
            with httpx.Client(base_url=each.base_url) as another:
                refused = another.post("/detect", content=one_cell())
            assert (refused.status_code, refused.json()["code"]) == (503, "queue_full")
            assert int(refused.headers["retry-after"]) >= 1
        # One image fits into no place, and the early refusal sees it; two don't where one is free.
        gate.touch()
        assert [each.result().status_code for each in (runs, *waiting)] == [200] * 3
        until(lambda: value(client, "detector_busy_shared_slots") == 0)
        assert value(client, 'detector_rejected_total{reason="queue_full"}') == 2
        assert server.stop() == 0


def test_who_leaves_frees_places_and_slots(repo_dir: Path, artifact: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with (
        several(repo_dir, artifact, program=GATED, GATE=str(gate)) as (server, client),
        ExitStack() as stack,
    ):
        port = client.base_url.port
        assert port is not None
        body = one_cell()
        head = f"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        leaving = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), LIMIT_S))
            for _ in range(10)
        ]
        leaving[0].sendall(head.encode() + body)
        until(lambda: value(client, "detector_active_inferences") == 1)
        for each in leaving[1:]:
            each.sendall(head.encode() + body)
        until(lambda: client.get("/health").json()["queue_images"] == 9)
        assert value(client, "detector_busy_shared_slots") == 10
        for each in leaving:
            each.close()
        until(lambda: client.get("/health").json()["queue_images"] == 0)
        # The inference still reads its own.
        until(lambda: value(client, "detector_busy_shared_slots") == 1)
        gate.touch()
        until(lambda: value(client, "detector_busy_shared_slots") == 0)
        assert client.post("/detect", content=body).status_code == 200
        assert server.stop() == 0
    assert [event["status"] for event in server.events("request")].count(499) == 10


def test_a_worker_that_is_killed_takes_only_its_own_requests_along_and_is_started_anew(
    repo_dir: Path, artifact: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    with (
        several(repo_dir, artifact, program=GATED, GATE=str(gate)) as (server, client),
        each_worker(client, 4) as clients,
        ThreadPoolExecutor(4) as threads,
    ):
        of: dict[str, list[httpx.Client]] = {}
        for turn, each in enumerate((*clients, client), start=1):
            assert each.get("/model").status_code == 200
            of.setdefault(server.wait_for("request", turn)["process"], []).append(each)
        # That of `client` is to live, so that it can go on asking.
        living, dying = sorted(of.values(), key=lambda each: client not in each)
        counted = 'detector_requests_total{route="/model",status="200"}'
        assert value(client, counted) == 5
        runs = threads.submit(living[0].post, "/detect", content=one_cell())
        until(lambda: value(client, "detector_active_inferences") == 1)
        files = [("image", one_cell())] * 3
        waits = threads.submit(living[1].post, "/detect", files=files)
        dies = threads.submit(dying[0].post, "/detect", files=files)
        until(lambda: client.get("/health").json()["queue_images"] == 6)
        name = next(name for name, each in of.items() if each is dying)
        (victim,) = (e["pid"] for e in server.events("http_worker_started") if e["name"] == name)
        os.kill(victim, signal.SIGKILL)
        ended = server.wait_for("http_worker_ended")
        assert (ended["pid"], ended["exit_code"]) == (victim, -signal.SIGKILL)
        assert isinstance(dies.exception(), httpx.RemoteProtocolError | httpx.ReadError)
        # What waited in the queue for the dead is gone.
        until(lambda: value(client, "detector_busy_shared_slots") == 4)
        assert client.get("/health").json()["queue_images"] == 3
        until(lambda: value(client, "detector_http_workers") == 2)
        gate.touch()
        assert [each.result().status_code for each in (runs, waits)] == [200, 200]
        until(lambda: value(client, "detector_busy_shared_slots") == 0)
        assert value(client, "detector_worker_restarts_total") == 1
        assert value(client, counted) == 5  # a counter never falls
        with each_worker(client, 4) as new:
            assert [n.post("/detect", content=one_cell()).status_code for n in new] == [200] * 4
        assert server.stop() == 0


def test_a_worker_that_hangs_gets_no_connections_and_has_them_again_when_it_goes_on(
    repo_dir: Path, artifact: Path
) -> None:
    with several(repo_dir, artifact) as (server, client):
        assert client.get("/model").status_code == 200
        answers = server.wait_for("request")["process"]
        victim = next(
            e["pid"] for e in server.events("http_worker_started") if e["name"] != answers
        )
        os.kill(victim, signal.SIGSTOP)
        try:
            until(lambda: value(client, "detector_http_workers") == 1)
            with each_worker(client, 8) as clients:
                codes = [each.post("/detect", content=one_cell()).status_code for each in clients]
            assert codes == [200] * 8
        finally:
            os.kill(victim, signal.SIGCONT)
        until(lambda: value(client, "detector_http_workers") == 2)
        assert value(client, "detector_worker_restarts_total") == 0
        with each_worker(client, 4) as clients:
            assert [each.get("/model").status_code for each in clients] == [200] * 4
        # Both have some again.
        until(lambda: len({event["process"] for event in server.events("request")}) == 2)
        assert server.stop() == 0


def test_workers_end_by_themselves_at_a_drain(repo_dir: Path, artifact: Path) -> None:
    # Killed when their channels end, they would lose the spans and lines that they still have.
    with several(repo_dir, artifact) as (server, client):
        assert client.post("/detect", content=one_cell()).status_code == 200
        assert server.stop() == 0
        server.wait_for("http_worker_ended", 2)
        assert [each["exit_code"] for each in server.events("http_worker_ended")] == [0, 0]


def test_a_worker_that_was_stopped_does_not_hold_up_the_end(repo_dir: Path, artifact: Path) -> None:
    with several(repo_dir, artifact, "--drain-timeout-s=0.1") as (server, _):
        workers_of(server)[0].suspend()
        assert server.stop() == 0
    assert GRACE_S < LAST_RESORT_S  # by when all is over


def test_an_engine_process_that_hangs_leaves_no_scrape_waiting(
    repo_dir: Path, artifact: Path
) -> None:
    with several(repo_dir, artifact) as (server, client):
        server.process.send_signal(signal.SIGSTOP)
        try:
            told = client.get("/metrics")
        finally:
            server.process.send_signal(signal.SIGCONT)
        assert (told.status_code, told.json()["code"]) == (503, "not_ready")
        assert "engine process" in told.json()["detail"]
        assert int(told.headers["retry-after"]) >= 1
        until(lambda: client.get("/metrics").status_code == 200)
        assert client.post("/detect", content=one_cell()).status_code == 200
        assert server.stop() == 0


def test_a_worker_that_cannot_be_started_anew_does_not_take_the_others_along(
    repo_dir: Path, artifact: Path
) -> None:
    program = (
        "import sys; from server.__main__ import main; from server.workers import supervisor; "
        "supervisor.BACKOFF_S = 60; sys.exit(main(sys.argv[1:]))"
    )
    with several(repo_dir, artifact, program=program) as (server, client):
        assert client.get("/model").status_code == 200
        answers = server.wait_for("request")["process"]
        victim = next(
            e["pid"] for e in server.events("http_worker_started") if e["name"] != answers
        )
        # No file is left for another process: what a limit of the system does.
        soft, hard = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (3, hard))
        os.kill(victim, signal.SIGKILL)
        server.wait_for("http_worker_not_started")
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (soft, hard))
        assert client.post("/detect", content=one_cell()).status_code == 200
        assert server.stop() == 0


def test_workers_that_always_die_end_the_server(repo_dir: Path, artifact: Path) -> None:
    with several(repo_dir, artifact) as (server, _):
        while server.process.poll() is None:
            for worker in workers_of(server):
                if worker.status() != psutil.STATUS_ZOMBIE:
                    worker.kill()
            time.sleep(0.02)
        assert server.process.wait(LIMIT_S) == 1
    (failed,) = server.events("service_failed")
    assert re.search(r"http-\d died 6 times in 60 s", failed["reason"])


def test_a_worker_that_always_dies_ends_the_server_and_its_siblings_answer_first(
    repo_dir: Path, artifact: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    program = f"from server.workers import supervisor; supervisor.BACKOFF_S = 0.001\n{GATED}"
    with (
        several(repo_dir, artifact, program=program, GATE=str(gate)) as (server, client),
        ThreadPoolExecutor(1) as threads,
    ):
        assert client.get("/model").status_code == 200
        answers = server.wait_for("request")["process"]
        runs = threads.submit(client.post, "/detect", content=one_cell())
        until(lambda: value(client, "detector_busy_shared_slots") == 1)

        def starts() -> list[int]:
            events = server.events("http_worker_started")
            return [event["pid"] for event in events if event["name"] != answers]

        for deaths in range(MAX_CRASHES + 1):
            until(lambda deaths=deaths: len(starts()) > deaths)  # type: ignore[misc]
            os.kill(starts()[deaths], signal.SIGKILL)
        failed = server.wait_for("service_failed")
        assert "died 6 times in 60 s" in failed["reason"]
        gate.touch()
        assert runs.result().status_code == 200
        assert server.process.wait(LIMIT_S) == 1


def test_a_heartbeat_that_fails_ends_the_server_with_the_reason_and_a_drain(
    repo_dir: Path, artifact: Path, tmp_path: Path
) -> None:
    gate, broken = tmp_path / "gate", tmp_path / "broken"
    program = f"""
import os
from pathlib import Path
from server.workers.worker_connection import WorkerConnection
heartbeat = WorkerConnection.heartbeat
def breaking(self, number):
    if Path(os.environ["BROKEN"]).exists():
        raise RuntimeError("planted")
    heartbeat(self, number)
WorkerConnection.heartbeat = breaking
{GATED}"""
    with (
        several(repo_dir, artifact, program=program, GATE=str(gate), BROKEN=str(broken)) as (
            server,
            client,
        ),
        each_worker(client) as clients,
        ThreadPoolExecutor(2) as threads,
    ):
        asking = [threads.submit(each.post, "/detect", content=one_cell()) for each in clients]
        until(lambda: value(client, "detector_busy_shared_slots") == 2)
        broken.touch()
        assert server.wait_for("service_failed")["reason"] == "planted"
        gate.touch()
        assert [each.result().status_code for each in asking] == [200, 200]
        assert server.process.wait(LIMIT_S) == 1
    (failed,) = server.events("service_failed")
    assert "RuntimeError: planted" in failed["exception"]


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_and_no_memory_outlives_the_engine_process(
    repo_dir: Path, artifact: Path, sent: signal.Signals
) -> None:
    with several(repo_dir, artifact, workers=3) as (server, client):
        assert client.post("/detect", content=one_cell()).status_code == 200
        workers = workers_of(server)
        assert len(workers) == 3
        before = {each.name for each in Path("/dev/shm").iterdir()}
        server.process.send_signal(sent)
        server.process.wait(LIMIT_S)
        gone, alive = psutil.wait_procs(workers, timeout=LIMIT_S)
        assert (len(gone), alive) == (3, [])
        assert {each.name for each in Path("/dev/shm").iterdir()} <= before


def test_a_terminals_ctrl_c_reaches_all_and_drains_once(
    repo_dir: Path, artifact: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    with (
        several(repo_dir, artifact, program=GATED, GATE=str(gate)) as (server, client),
        each_worker(client) as clients,
        ThreadPoolExecutor(4) as threads,
    ):
        asking = [threads.submit(each.post, "/detect", content=one_cell()) for each in clients]
        until(lambda: value(client, "detector_busy_shared_slots") == 2)
        for each in workers_of(server):
            for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                each.send_signal(name)
        server.process.send_signal(signal.SIGINT)
        server.wait_for("Shutting down", 2)
        with pytest.raises(httpx.ConnectError):
            httpx.get(client.base_url.join("/health"))
        gate.touch()
        assert [each.result().status_code for each in asking] == [200, 200]
        assert server.process.wait(LIMIT_S) == 0
    assert not server.events("signal_while_draining")


def test_a_second_ctrl_c_ends_all_at_once(repo_dir: Path, artifact: Path) -> None:
    with several(repo_dir, artifact, "--drain-timeout-s=3600") as (server, client):
        port = client.base_url.port
        assert port is not None
        with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as slow:
            slow.sendall(b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc")
            until(lambda: value(client, "detector_inflight_requests") == 2)
            workers = workers_of(server)
            server.process.send_signal(signal.SIGINT)
            server.wait_for("Shutting down", 2)
            server.process.send_signal(signal.SIGTERM)
            server.wait_for("signal_while_draining")
            assert server.process.poll() is None
            server.process.send_signal(signal.SIGINT)
            assert server.process.wait(LIMIT_S) == 0
        assert psutil.wait_procs(workers, timeout=LIMIT_S)[1] == []


def test_a_request_longer_than_the_drain_is_told_so(repo_dir: Path, artifact: Path) -> None:
    with several(repo_dir, artifact, "--drain-timeout-s=0.1") as (server, client):
        port = client.base_url.port
        assert port is not None
        with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as slow:
            slow.sendall(b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc")
            until(lambda: value(client, "detector_inflight_requests") == 2)
            server.process.send_signal(signal.SIGTERM)
            answer = slow.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 503"), answer
        assert b'"code": "draining"' in answer
        assert server.process.wait(LIMIT_S) == 0


def test_a_lost_device_ends_all_with_the_reason(repo_dir: Path, artifact: Path) -> None:
    with several(repo_dir, artifact, program=LOST) as (server, client), each_worker(client) as two:
        port = client.base_url.port
        assert port is not None
        with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as slow:
            slow.sendall(b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc")
            assert two[0].post("/detect", content=one_cell()).status_code == 500
            assert slow.makefile("rb").read().startswith(b"HTTP/1.1 503")
        assert server.process.wait(LIMIT_S) == 1
    (failed,) = server.events("service_failed")
    assert "illegal memory access" in failed["exception"]


def test_requests_beside_reloads_are_answered_by_one_model_each(
    repo_dir: Path, tmp_path: Path
) -> None:
    """The two models differ in size, so that a mixture could not be answered."""
    model = tiny_artifact(tmp_path / "model.onnx", name="small")
    side = 8 * CELL
    shapes = {"small": (64, 64), "large": (side, side)}
    files = {
        name: tiny_artifact(tmp_path / f"{name}.bin", name=name, input_hw=hw, buckets=[hw])
        for name, hw in shapes.items()
    }
    versions = {load_artifact(file).version: name for name, file in files.items()}
    (tmp_path / "next.onnx").write_bytes(files["small"].read_bytes())
    (tmp_path / "next.onnx").rename(model)
    stop = threading.Event()
    image = one_cell((256, 256), (3, 4))

    def ask(client: httpx.Client) -> list[tuple[int, str, int]]:
        found = []
        while not stop.is_set():
            answer = client.post("/detect", content=image)
            body = answer.json()
            version = body.get("model", {}).get("version", "")
            found.append((answer.status_code, version, len(body.get("results", []))))
        return found

    with (
        several(repo_dir, model, "--api-keys=secret") as (server, client),
        each_worker(client, 4) as clients,
        ThreadPoolExecutor(4) as threads,
    ):
        for each in clients:
            each.headers.update(KEY)
        asking = [threads.submit(ask, each) for each in clients]
        current = "small"
        with each_worker(client, 3) as operators:
            for turn in range(6):
                current = "small" if current == "large" else "large"
                (tmp_path / "next.onnx").write_bytes(files[current].read_bytes())
                (tmp_path / "next.onnx").rename(model)
                operator = operators[turn % 3]
                assert operator.post("/model/reload", headers=KEY).status_code == 200
                # All workers have it, whichever was asked.
                for each in operators:
                    assert each.get("/health").json()["model"] == current
                    assert each.get("/model", headers=KEY).json()["metadata"]["name"] == current
        stop.set()
        answers = [answer for each in asking for answer in each.result()]
        until(lambda: value(client, "detector_busy_shared_slots") == 0)
        assert value(client, 'detector_reloads_total{outcome="ok"}') == 6
        assert server.stop() == 0
    assert len(answers) > 20
    assert {(status, results) for status, _, results in answers} == {(200, 1)}
    assert {versions[version] for _, version, _ in answers} == {"small", "large"}


def test_keys_are_read_again_for_all_and_a_bad_file_changes_nothing(
    repo_dir: Path, artifact: Path, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("key-one\n", encoding="utf-8")
    with (
        several(repo_dir, artifact, f"--api-keys-file={keys}") as (server, client),
        each_worker(client) as clients,
    ):

        def statuses(key: str) -> set[int]:
            headers = {"x-api-key": key}
            return {e.post("/detect", content=one_cell(), headers=headers).status_code
                    for e in clients}  # fmt: skip

        def reload(key: str) -> int:
            return client.post("/model/reload", headers={"x-api-key": key}).status_code

        assert (statuses("key-one"), statuses("key-two")) == ({200}, {401})
        keys.write_text("key-two\n", encoding="utf-8")
        assert reload("key-one") == 200
        assert (statuses("key-one"), statuses("key-two")) == ({401}, {200})
        keys.write_text("# nobody\n", encoding="utf-8")
        assert reload("key-two") == 409
        assert (statuses("key-one"), statuses("key-two")) == ({401}, {200})
        # A worker that is started now knows the keys that hold, not those of the file.
        for worker in workers_of(server):
            worker.kill()
        server.wait_for("http_worker_started", 4)
        with each_worker(client) as new:
            headers = {"x-api-key": "key-two"}
            assert {e.post("/detect", content=one_cell(), headers=headers).status_code
                    for e in new} == {200}  # fmt: skip
        keys.write_text("key-three\n", encoding="utf-8")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("reloaded", 2)
        assert server.stop() == 0
    assert not [line for line in server.lines if "key-one" in line or "key-two" in line]


@pytest.mark.slow
def test_after_thousands_of_requests_the_sums_are_what_was_sent_and_nothing_is_held(
    repo_dir: Path, artifact: Path
) -> None:
    rng = np.random.default_rng(0)
    kinds = ("one", "three", "broken", "raw", "left")
    plans = [rng.choice(kinds, 250).tolist() for _ in range(8)]
    pixels = paint((64, 64), {(0, 0): RED})[None]
    head = {"inputs": [{"name": "images", "datatype": "UINT8", "shape": [1, 64, 64, 3],
                        "parameters": {"binary_data_size": pixels.nbytes}}]}  # fmt: skip
    text = json.dumps(head).encode()
    image = one_cell()

    def run(client: httpx.Client, plan: list[str]) -> None:
        port = client.base_url.port
        for kind in plan:
            if kind == "one":
                assert client.post("/detect", content=image).status_code == 200
            elif kind == "three":
                files = [("image", image)] * 3
                assert client.post("/detect", files=files).status_code == 200
            elif kind == "broken":
                assert client.post("/detect", content=image[:60]).status_code == 422
            elif kind == "raw":
                answer = client.post(
                    "/v2/models/tiny-raw/infer",
                    content=text + pixels.tobytes(),
                    headers={"Inference-Header-Content-Length": str(len(text))},
                )
                assert answer.status_code == 200
            else:
                with socket.create_connection(("127.0.0.1", port or 0), LIMIT_S) as leaving:
                    sent = (
                        f"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: {len(image)}\r\n\r\n"
                    )
                    leaving.sendall(sent.encode() + image)

    with (
        several(repo_dir, artifact) as (server, client),
        each_worker(client, 8) as clients,
        ThreadPoolExecutor(8) as threads,
    ):
        files_before = [worker.num_fds() for worker in workers_of(server)]
        for done in [threads.submit(run, *each) for each in zip(clients, plans, strict=True)]:
            done.result()
        sent = {kind: sum(plan.count(kind) for plan in plans) for kind in kinds}
        until(lambda: value(client, "detector_inflight_requests") == 1)  # this one
        until(lambda: value(client, "detector_busy_shared_slots") == 0)
        assert client.get("/health").json()["queue_images"] == 0
        detected = sent["one"] + sent["three"]
        answered = 'detector_requests_total{route="/detect",status="200"}'
        left = value(client, answered) - detected  # answered before they had left
        assert 0 <= left <= sent["left"]
        broken = 'detector_requests_total{route="/detect",status="422"}'
        assert value(client, broken) == sent["broken"]
        raw = 'detector_requests_total{route="/v2/models/{name}/infer",status="200"}'
        assert value(client, raw) == sent["raw"]
        images = sent["one"] + 3 * sent["three"] + sent["raw"] + left
        found = value(client, 'detector_images_total{outcome="ok"}')
        # A client may also leave between its image's detections and its response.
        assert images <= found <= images + sent["left"] - left
        times = 'detector_request_seconds_count{status="200"}'
        assert value(client, times) == detected + sent["raw"] + left
        assert value(client, "detector_inflight_body_bytes") == 0
        for each in clients:
            each.close()
        until(lambda: all(
            now <= before + 2 for now, before in
            zip([worker.num_fds() for worker in workers_of(server)], files_before, strict=True)
        ))  # fmt: skip
        assert server.stop() == 0


def test_liveness_and_readiness_are_the_whole_servers(
    repo_dir: Path, artifact: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    flags = ("--inference-watchdog-s=0.3",)
    with (
        several(repo_dir, artifact, *flags, program=GATED, GATE=str(gate)) as (server, client),
        each_worker(client) as clients,
        ThreadPoolExecutor(1) as threads,
    ):
        assert [each.get("/health/live").status_code for each in clients] == [200, 200]
        with httpx.Client(base_url=client.base_url, timeout=LIMIT_S) as other:
            hung = threads.submit(other.post, "/detect", content=one_cell())
            for each in clients:
                until(lambda each=each: each.get("/health/live").status_code == 503)  # type: ignore[misc]
                assert each.get("/health").json()["status"] == "hung"
            gate.touch()
            assert hung.result().status_code == 200
        for each in clients:
            until(lambda each=each: each.get("/health/ready").status_code == 200)  # type: ignore[misc]
        assert server.stop() == 0


@pytest.mark.parametrize(
    ("flags", "variables", "message"),
    [
        (["--otlp-endpoint=nowhere"], {}, "error: otlp_endpoint"),  # only workers send traces
        ([], {"YOLO_FLA_DEVICE": "cuda:99"}, r"error: .*yolov8-fla\[gpu\]"),
        (["--api-keys-file=no"], {}, "error: api_keys_file no: No such file"),
        (["--model=README.md"], {}, r"error: README\.md: not a complete ONNX file"),
    ],
)
def test_what_is_wrong_at_the_start_is_said_as_by_one_process(
    repo_dir: Path, artifact: Path, flags: list[str], variables: dict[str, str], message: str
) -> None:
    common = (f"--model={artifact}", "--http-workers=2", "--log-format=console")
    ended = run_to_the_end(repo_dir, *common, *flags, **variables)
    assert ended.returncode == 2, ended
    assert re.match(message, ended.stderr.splitlines()[-1]), ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_signal_before_ready_ends_it(repo_dir: Path, tmp_path: Path) -> None:
    endless = endless_artifact(tmp_path / "endless.onnx")
    with started(repo_dir, endless, "--http-workers=2") as server:
        url = server.wait_for("listening")["url"]
        with httpx.Client(base_url=url, timeout=LIMIT_S) as client:
            assert client.get("/health/live").status_code == 200
            assert client.get("/health/ready").status_code == 503
            assert client.post("/detect", content=one_cell()).json()["code"] == "not_ready"
        assert server.stop() == 0


@pytest.mark.parametrize("processes", [1, 2])
def test_connections_past_the_limit_of_open_files_are_told_so(
    repo_dir: Path, artifact: Path, processes: int
) -> None:
    flags = (f"--http-workers={processes}",)
    ask = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    few_files = ("-c", FEW_FILES)
    with ready(repo_dir, artifact, *flags, program=few_files) as (_, client), ExitStack() as many:
        until(lambda: value(client, "detector_http_workers") == processes)
        address = client.base_url.host, client.base_url.port or 0
        opened = [
            many.enter_context(socket.create_connection(address, timeout=LIMIT_S))
            for _ in range(600)
        ]
        for each in opened:
            each.sendall(ask)
        answers = [each.recv(65536) for each in opened]
        refused = [answer for answer in answers if not answer.startswith(b"HTTP/1.1 200 ")]
        assert 0 < len(refused) < len(answers)
        for answer in refused:
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"\r\nretry-after: 1\r\n" in answer
            assert b'"code": "too_many_connections"' in answer
        many.close()

        def served_again() -> bool:
            return httpx.get(client.base_url.join("/health/ready")).status_code == 200

        until(served_again)
