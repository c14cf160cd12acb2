"""A CUDA context that is really lost; each in a process of its own, which it takes along."""

import json
import signal
from typing import Any

import httpx
import pytest

from server.serving.service import FAILED_GRACE_S
from tests.support.gpu_server import ready, run_to_the_end, samples
from tests.support.gpu_sessions import CALLS, Calls

pytestmark = pytest.mark.gpu

METHODS = ("illegal-access", "reset")
CALLS_END_S = 60


@pytest.fixture(scope="module", params=METHODS)
def method(request: pytest.FixtureRequest, rehearsal: bool) -> str:
    return "rehearse" if rehearsal else request.param


@pytest.fixture(scope="module")
def seen(method: str, device: str) -> dict[str, Any]:
    """What an app answers before and after."""
    flags = ("--device", device, "--model", "weights", "--max-batch-size", "2")
    done = run_to_the_end("-m", "tests.support.lost_context", "app", method, *flags)
    assert "lost: " in done.stderr, "the context could not be destroyed"
    assert done.stdout, f"the process died, with exit code {done.returncode}"
    answers: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answers


def test_a_request_after_the_loss_fails(seen: dict[str, Any], device: str) -> None:
    assert seen["device"] == device
    assert seen["before"] == {"detect": 200, "live": 200, "ready": 200}
    assert seen["after"]["detect"] in (500, 503)


def test_liveness_fails(seen: dict[str, Any]) -> None:
    assert seen["end"]["live"] == 503
    assert seen["end"]["detect"] == 503
    assert seen["end"]["state"] == "failed"


def test_the_reason_is_the_lost_session(seen: dict[str, Any], device: str) -> None:
    assert f"the session on {device} is lost" in seen["end"]["failure"]


@pytest.mark.parametrize("calls", CALLS)
def test_every_way_of_calls_knows_that_it_is_lost(
    device: str, rehearsal: bool, calls: Calls
) -> None:
    method = "rehearse" if rehearsal else "illegal-access"
    done = run_to_the_end("-m", "tests.support.lost_context", "engine", method, device, calls)
    assert done.stdout, f"the process died, with exit code {done.returncode}"
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["before"][0] == 2
    assert seen["after"]["code"] == "session_lost"
    assert f"the session on {device} is lost" in seen["after"]["text"]


def test_the_process_ends_with_a_code_that_restarts_it(method: str, device: str) -> None:
    program = ("-m", "tests.support.lost_context", "process", method)
    (_, image), *_ = samples()
    with ready(device, program=program) as (server, client):
        assert client.post("/detect", content=image).status_code == 200
        server.process.send_signal(signal.SIGUSR1)
        # The loss is told in the log, before anything else that could be asked.
        assert lost(server), server.lines
        try:
            assert client.post("/detect", content=image).status_code in (500, 503)
        except httpx.TransportError as error:
            print("no answer:", error)
        code = server.process.wait(FAILED_GRACE_S + CALLS_END_S)
        print(*server.lines[-20:], f"exit code {code}", sep="\n")
        assert code == 1
    (failed,) = server.events("service_failed")
    assert f"the session on {device} is lost" in failed["reason"]


def lost(server: Any, limit_s: float = CALLS_END_S) -> bool:
    """Waits for the line that says that the context is lost."""
    with server._news:
        return bool(
            server._news.wait_for(
                lambda: any(line.startswith("lost: ") for line in server.lines), limit_s
            )
        )
