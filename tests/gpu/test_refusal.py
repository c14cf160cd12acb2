"""A GPU that the process may not see."""

from subprocess import CompletedProcess

import pytest

from tests.support.gpu_server import ready, run_to_the_end

pytestmark = pytest.mark.gpu

LIMIT_S = 60  # a server that starts all the same does not end by itself
FLAGS = ("--model", "weights", "--port", "0")


@pytest.fixture(scope="module")
def refused(device: str) -> CompletedProcess[str]:
    flags = ("--device", "cuda", *FLAGS)
    return run_to_the_end("-m", "server", *flags, limit_s=LIMIT_S, CUDA_VISIBLE_DEVICES="")


def test_a_server_that_has_to_use_a_hidden_gpu_does_not_start(
    refused: CompletedProcess[str],
) -> None:
    assert refused.returncode == 2
    assert "error: CUDAExecutionProvider" in refused.stderr or (
        "error: this onnxruntime is built without" in refused.stderr
    )


def test_it_says_why_in_one_line(refused: CompletedProcess[str]) -> None:
    assert refused.stdout == ""
    assert len([line for line in refused.stderr.splitlines() if line.startswith("error: ")]) == 1
    # What remains is the log: JSON, and nothing of the libraries' own.
    others = [line for line in refused.stderr.splitlines() if not line.startswith("error: ")]
    assert [line for line in others if not line.startswith("{")] == []


def test_the_doctor_says_that_it_would_not_start(device: str) -> None:
    done = run_to_the_end(
        "-m", "server", "doctor", "--device", "cuda", *FLAGS, CUDA_VISIBLE_DEVICES=""
    )
    assert done.returncode == 2
    assert "would NOT start" in done.stdout


def test_auto_takes_the_cpu_and_says_so_loudly(device: str, rehearsal: bool) -> None:
    with ready("auto", YOLO_FLA_MAX_BATCH_SIZE="1", CUDA_VISIBLE_DEVICES="") as (server, client):
        event = server.events("ready")[0]
        health = client.get("/health").json()
        assert event["provider"] == health["provider"] == "CPUExecutionProvider"
        metrics = client.get("/metrics").text
        if rehearsal:
            return  # nothing was to be expected here
        assert event["cpu_fallback"]
        assert health["cpu_fallback"] == event["cpu_fallback"]
        assert any("NOT on a GPU" in line and '"warning"' in line for line in server.lines)
        assert "detector_cpu_fallback 1" in metrics
