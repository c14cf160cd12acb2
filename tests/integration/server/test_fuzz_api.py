"""Requests made up from the OpenAPI document, against the running server (schemathesis)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ready

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)
EXAMPLES = 30  # of each operation; about 1,500 requests in all
CLI = Path(sys.executable).with_name("schemathesis")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("keys", ["", "fuzz-key"])
def test_no_request_meets_what_the_document_does_not_say(
    repo_dir: Path, artifact: Path, tmp_path: Path, keys: str
) -> None:
    with ready(repo_dir, artifact, f"--api-keys={keys}") as (server, client):
        hooks = {"SCHEMATHESIS_HOOKS": "tests.support.fuzz_hooks", "PYTHONPATH": str(repo_dir)}
        command = [
            *(str(CLI), "run", str(client.base_url.join("/openapi.json"))),
            *("--checks", ",".join(CHECKS)),
            *("--phases", "examples,coverage,fuzzing"),
            *("--max-examples", str(EXAMPLES), "--seed", "1", "--no-color"),
        ]
        if keys:
            command += ["--header", f"Authorization: Bearer {keys}"]
        ended = subprocess.run(
            command,
            cwd=tmp_path,
            env=os.environ | hooks,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert ended.returncode == 0, (ended.stdout, server.events("unexpected_error"))
        assert client.get("/health/live").status_code == 200
        answered = client.get("/metrics").text
        assert server.stop() == 0
    assert 'detector_images_total{outcome="ok"}' in answered
    statuses = {event["status"] for event in server.events("request")}
    assert {200, 400, 415, 422} <= statuses  # it came past the first checks
    assert not [status for status in statuses if status >= 500]
    assert not server.events("unexpected_error")
