import json

import numpy as np
import pytest

from tests.support.expected_detections import FILE
from tests.support.gpu_server import ready, run_to_the_end, samples
from tests.support.sample_images import apart, farthest

pytestmark = pytest.mark.gpu

SIDES = ("x1", "y1", "x2", "y2")
# In float16 against float32, as tests/gpu/test_parity.py says.
SCORES, BOXES_PX, SURE = 0.05, 8.0, 0.3


@pytest.mark.parametrize("http_workers", [1, 2])
def test_the_server_detects_on_the_gpu_and_drains(
    device: str, provider: str, rehearsal: bool, http_workers: int
) -> None:
    flags = ("--precision", "fp16", "--http-workers", str(http_workers))
    with ready(device, *flags) as (server, client):
        health = client.get("/health").json()
        assert (health["provider"], health["device"]) == (provider, device)
        assert health["cpu_fallback"] is None
        assert health["precision"] == "fp16"
        files = [("images", each) for each in samples()]
        response = client.post("/detect", files=files)
        assert response.status_code == 200
        expected = json.loads(FILE.read_text())
        differences = []
        for result, (name, _) in zip(response.json()["results"], samples(), strict=True):
            rows = np.array(
                [
                    [*(each["box"][side] for side in SIDES), each["score"], each["class_id"]]
                    for each in result["detections"]
                ],
                np.float32,
            ).reshape(-1, 6)
            truth = np.array(expected[name], np.float32)
            differences.append(apart(rows, truth, least_score=SURE))
        worst = farthest(differences)
        print(worst)
        assert worst.compared > 40
        assert worst.unmatched == 0
        assert worst.scores <= SCORES
        assert worst.boxes_px <= BOXES_PX
        metrics = client.get("/metrics").text
        if not rehearsal:
            for name in ("memory_used_bytes", "memory_total_bytes", "utilization_ratio"):
                assert f"detector_gpu_{name}{{" in metrics
        assert server.stop() == 0


def test_the_doctor_says_what_runs_on_the_gpu(device: str, provider: str, rehearsal: bool) -> None:
    flags = ("--model", "weights", "--device", device, "--port", "0", "--json")
    done = run_to_the_end("-m", "server", "doctor", *flags)
    assert done.returncode == 0
    checks = {each["name"]: each for each in json.loads(done.stdout)["checks"]}
    assert f"{provider} on {device}" in checks["runs on"]["text"]
    if not rehearsal:
        assert checks["driver"]["mark"] == "ok"
        assert checks["chosen"]["text"].startswith("fp16: ")
