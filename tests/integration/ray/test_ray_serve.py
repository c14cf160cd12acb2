"""`python -m server.ray.serve` beside `python -m server`: the same answers, from two replicas."""

import base64
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

pytest.importorskip("ray", reason="needs the extra `ray`")

from tests.support.artifacts import paint, tiny_artifact
from tests.support.processes import ready
from tests.support.serving import encode, one_cell

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
LIMIT_S = 100
KEY = {"X-API-Key": "a-key"}
LIMITS = ("--max-body-bytes", "100000", "--max-images-per-request", "4", "--api-keys", "a-key")
GOOD, BROKEN = one_cell(), one_cell()[:-20]


@dataclass
class OnRay:
    """A running `python -m server.ray.serve`, and what it prints."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    _listening: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def follow(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r'"url":"(http:[^"]*)".*"event":"listening"', line):
                self.url = found[1]
                self._listening.set()
        self._listening.set()

    def wait(self) -> None:
        assert self._listening.wait(LIMIT_S), self.lines
        assert self.url, self.lines

    def replicas(self) -> list[psutil.Process]:
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [each for each in children if "ServeReplica:detector" in " ".join(each.cmdline())]


@contextmanager
def on_ray(repo: Path, artifact: Path, *flags: str) -> Iterator[OnRay]:
    command = [sys.executable, "-m", "server.ray.serve", "--model", str(artifact), *flags]
    with (
        # For Ray's logs. Not below the test's own folder: a socket's path has 107 bytes at most.
        tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as scratch,
        subprocess.Popen(
            command, cwd=repo, stderr=subprocess.PIPE, text=True, env=environment(scratch)
        ) as process,
    ):
        started = OnRay(process)
        reader = threading.Thread(target=started.follow)
        reader.start()
        try:
            yield started
        finally:
            if process.poll() is None:
                # Ray's processes end when they miss this one; killed, they end now.
                family = psutil.Process(process.pid).children(recursive=True)
                process.kill()
                for each in family:
                    with suppress(psutil.NoSuchProcess):
                        each.kill()
            reader.join()


def environment(scratch: str) -> dict[str, str]:
    return os.environ | {
        "RAY_TMPDIR": scratch,
        "YOLO_FLA_DEVICE": "cpu",
        "YOLO_FLA_INTRA_OP_THREADS": "1",
    }


@dataclass
class Both:
    """The same model behind Ray Serve, and behind our own HTTP server."""

    ray: OnRay
    artifact: Path
    client: httpx.Client
    plain: httpx.Client


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, repo_dir: Path) -> Iterator[Both]:
    artifact = tiny_artifact(tmp_path_factory.mktemp("artifact") / "tiny.onnx")
    scaling = ("--replicas", "2", "--max-replicas", "3", "--cpus-per-replica", "0.2")
    port = str(free_port())
    with (
        on_ray(repo_dir, artifact, *LIMITS, *scaling, "--port", port) as started,
        ready(repo_dir, artifact, *LIMITS) as (_, plain),
    ):
        started.wait()
        with httpx.Client(base_url=started.url, timeout=LIMIT_S) as client:
            yield Both(started, artifact, client, plain)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


REQUESTS: dict[str, dict[str, Any]] = {
    "raw": {"content": GOOD, "headers": {"Content-Type": "image/png"}},
    "multipart": {"files": [("a", ("a.png", GOOD)), ("b", ("b.png", encode(paint((96, 64), {}))))]},
    "a broken one among good ones": {
        "files": [("a", ("a.png", GOOD)), ("b", ("b.png", BROKEN)), ("c", ("c.png", b"text"))]
    },
    "json": {"json": {"images": [base64.b64encode(GOOD).decode()] * 3, "conf": 0.9}},
    "parameters": {"content": GOOD, "params": {"classes": "WBC", "max_det": "1"}},
}
REFUSED: dict[str, dict[str, Any]] = {
    "no image": {"content": b""},
    "not json": {"content": b"{", "headers": {"Content-Type": "application/json"}},
    "all broken": {"files": [("a", ("a.png", BROKEN))]},
    "no image format": {"content": b"text"},
    "no content type": {"content": GOOD, "headers": {"Content-Type": "text/html"}},
    "parameter": {"content": GOOD, "params": {"conf": "2"}},
    "too many images": {"files": [("a", (f"{i}.png", GOOD)) for i in range(5)]},
    "too large": {"content": b"x" * 5_000_000},
    "no key": {"content": GOOD, "headers": {"X-API-Key": "another"}},
}


def posted(client: httpx.Client, request: dict[str, Any], path: str = "/detect") -> httpx.Response:
    headers = {**KEY, **request.get("headers", {})}
    return client.post(path, **{**request, "headers": headers})


@pytest.mark.parametrize("name", REQUESTS)
def test_the_answers_are_those_of_the_plain_server(both: Both, name: str) -> None:
    expected = posted(both.plain, REQUESTS[name]).json()
    for _ in range(4):  # of whichever replica
        answer = posted(both.client, REQUESTS[name])
        assert answer.status_code == 200, answer.text
        assert answer.json()["results"] == expected["results"]
        assert answer.json()["model"] == expected["model"]


@pytest.mark.parametrize("name", REFUSED)
def test_the_errors_are_those_of_the_plain_server(both: Both, name: str) -> None:
    expected, answer = (posted(each, REFUSED[name]) for each in (both.plain, both.client))
    assert answer.status_code == expected.status_code >= 400
    assert answer.headers["content-type"] == "application/problem+json"
    told = {"type", "title", "status", "detail", "code"}
    assert {k: answer.json()[k] for k in told} == {k: expected.json()[k] for k in told}
    assert answer.headers.get_list("x-request-id") == [answer.json()["request_id"]]


def test_the_other_apis_and_pages_are_there(both: Both) -> None:
    for path in ("/", "/docs", "/openapi.json", "/health", "/health/live", "/health/ready"):
        assert both.client.get(path).status_code == both.plain.get(path).status_code == 200, path
    for path in ("/model", "/v2/models/tiny", "/v2", "/nothing", "/v2/models/nothing"):
        ours, plain = (each.get(path, headers=KEY) for each in (both.client, both.plain))
        assert ours.status_code == plain.status_code, path
        if path != "/nothing":
            assert ours.json() == plain.json()
    for each in (both.client, both.plain):
        found = each.post(
            "/v1/vision/detection", files={"image": ("a.png", GOOD)}, data={"api_key": "a-key"}
        )
        assert [one["label"] for one in found.json()["predictions"]] == ["RBC"]


def test_the_logged_client_is_who_connected_whatever_a_header_says(both: Both) -> None:
    headers = {**KEY, "x-request-id": "whose-address", "x-forwarded-for": "203.0.113.9"}
    assert both.client.get("/model", headers=headers).status_code == 200
    end = time.monotonic() + LIMIT_S
    while not (lines := [line for line in both.ray.lines if "whose-address" in line]):
        assert time.monotonic() < end, both.ray.lines
        time.sleep(0.05)
    assert '"client":"127.0.0.1"' in lines[0]


def test_its_ports_are_loopbacks_but_for_one_of_each_replica_that_serve_guards(both: Both) -> None:
    first = psutil.Process(both.ray.process.pid)
    listening = [
        connection.laddr.ip.removeprefix("::ffff:")
        for each in (first, *first.children(recursive=True))
        for connection in each.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    others = [each for each in listening if each != "127.0.0.1"]
    assert "127.0.0.1" in listening
    assert others == ["::"] * len(both.ray.replicas())


def samples(both: Both, name: str) -> dict[str, str]:
    text = both.client.get("/metrics").text
    lines = [line for line in text.splitlines() if line.startswith(name + "{")]
    return {re.findall(r'replica="([^"]*)"', line)[0]: line for line in lines}


def test_metrics_tell_of_both_replicas_whichever_is_asked(both: Both) -> None:
    first, second = (samples(both, "detector_model_info").keys() for _ in range(2))
    assert first == second
    assert len(first) == 2
    assert samples(both, "detector_queue_images").keys() == first


def test_a_reload_reaches_all_replicas_and_a_bad_model_none(both: Both) -> None:
    before = both.client.get("/model", headers=KEY).json()["version"]
    kept = both.artifact.read_bytes()
    new = tiny_artifact(both.artifact.with_suffix(".new"), architecture="more cells")
    new.replace(both.artifact)
    answer = both.client.post("/model/reload", headers=KEY)
    assert answer.status_code == 200, answer.text
    version = answer.json()["version"]
    assert version != before
    infos = samples(both, "detector_model_info")
    assert len(infos) == 2
    assert all(f'version="{version}"' in line for line in infos.values())

    broken = both.artifact.with_suffix(".broken")
    broken.write_bytes(b"no model")
    broken.replace(both.artifact)
    refused = both.client.post("/model/reload", headers=KEY)
    assert (refused.status_code, refused.json()["code"]) == (409, "reload_failed")
    assert all(version in line for line in samples(both, "detector_model_info").values())
    assert both.client.post("/model/reload").status_code == 401

    restored = both.artifact.with_suffix(".kept")
    restored.write_bytes(kept)
    restored.replace(both.artifact)
    assert both.client.post("/model/reload", headers=KEY).json()["version"] == before


def test_a_replica_that_is_killed_comes_back_and_no_answer_is_wrong(both: Both) -> None:
    expected = posted(both.plain, REQUESTS["multipart"]).json()["results"]
    before = samples(both, "detector_model_info").keys()
    victim, *others = both.ray.replicas()
    assert len(others) == 1
    victim.kill()
    deadline = time.monotonic() + LIMIT_S
    answered = 0
    while True:
        answer = posted(both.client, REQUESTS["multipart"])
        if answer.status_code == 200:
            assert answer.json()["results"] == expected
            answered += 1
        else:
            assert answer.status_code in (500, 503)
            assert answer.headers["content-type"] == "application/problem+json"
        now = samples(both, "detector_model_info").keys()
        if len(now) == 2 and now != before:
            break
        assert time.monotonic() < deadline, both.ray.lines[-20:]
    assert answered > 0
    assert len(now & before) == 1


def test_sigterm_ends_it_all(both: Both) -> None:
    """The last one: it takes the server of this module down."""
    family = psutil.Process(both.ray.process.pid).children(recursive=True)
    both.ray.process.send_signal(signal.SIGTERM)
    assert both.ray.process.wait(LIMIT_S) == 0, both.ray.lines[-20:]
    _, alive = psutil.wait_procs(family, timeout=LIMIT_S)
    assert alive == []
