"""What is counted, logged and held for every request, whichever door it took."""

import asyncio
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import Sampler, SamplingResult
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from server.http.errors import MAX_SHOWN_PATH
from server.http.middleware import RequestScope
from server.observability.tracing import Tracing
from tests.support.serving import HeldSession, held, one_cell, served

pytestmark = pytest.mark.anyio
IMAGE = one_cell()
DOORS = ("/detect", "/v2/models/tiny/infer", "/v1/vision/detection")


@pytest.mark.parametrize("door", DOORS)
async def test_refusals_and_times_of_every_door_are_counted(artifact: Path, door: str) -> None:
    async with served(artifact, api_keys="secret") as running:
        # DeepStack's door reads the form first: the key may be in it.
        files = {"image": ("a.png", IMAGE)}
        assert (await running.client.post(door, files=files)).status_code == 401
        assert (await running.client.get(door)).status_code == 405
        text = (await running.client.get("/metrics")).text
    assert 'detector_rejected_total{reason="unauthorized"} 1.0' in text
    assert 'detector_request_seconds_count{status="401"} 1.0' in text


async def test_what_is_no_detection_is_not_counted_as_one(artifact: Path) -> None:
    async with served(artifact, api_keys="secret") as running:
        for method, path in [("GET", "/model"), ("POST", "/model/reload"), ("POST", "/nothing")]:
            assert (await running.client.request(method, path)).status_code in (401, 404)
        text = (await running.client.get("/metrics")).text
    assert 'detector_rejected_total{reason="unauthorized"} 0.0' in text
    counts = re.findall(r"detector_request_seconds_count\{.*\} (.*)", text)
    assert set(counts) == {"0.0"}


async def test_bodies_in_memory_are_bounded_together(artifact: Path) -> None:
    room = len(IMAGE) * 3 // 2
    async with served(
        artifact, open_session=HeldSession, max_inflight_body_bytes=room, max_body_bytes=room
    ) as running:
        session = held(running)
        first = asyncio.create_task(running.client.post("/detect", content=IMAGE))
        await running.until(lambda: session.batch_sizes == [1])
        text = (await running.client.get("/metrics")).text
        assert f"detector_inflight_body_bytes {float(len(IMAGE))}" in text
        refused = await running.client.post("/detect", content=IMAGE)
        assert (refused.status_code, refused.json()["code"]) == (503, "uploads_full")
        assert f"max_inflight_body_bytes is {room}" in refused.json()["detail"]
        assert int(refused.headers["retry-after"]) >= 1
        session.gate.set()
        assert (await first).status_code == 200
        assert (await running.client.post("/detect", content=IMAGE)).status_code == 200
        for content in (b"no image", b"", IMAGE[:50]):
            assert (await running.client.post("/detect", content=content)).status_code >= 400
        assert "detector_inflight_body_bytes 0.0" in (await running.client.get("/metrics")).text


async def test_a_line_says_what_a_request_was_and_took(artifact: Path) -> None:
    async with served(artifact) as running:
        with capture_logs(processors=[merge_contextvars]) as lines:
            header = {"x-request-id": "mine"}
            await running.client.post("/detect?conf=0.5", content=IMAGE, headers=header)
            await running.client.get("/health/live")
    (line,) = [line for line in lines if line["event"] == "request"]
    assert (line["method"], line["path"], line["status"]) == ("POST", "/detect", 200)
    assert (line["images"], line["request_id"]) == (1, "mine")
    stages = [line[f"{stage}_ms"] for stage in ("decode", "queue", "inference", "postprocess")]
    assert 0 < sum(stages) <= line["duration_ms"]
    assert "trace_id" not in line


async def test_a_long_path_is_neither_echoed_nor_logged_whole(artifact: Path) -> None:
    async with served(artifact) as running:
        with capture_logs() as lines:
            response = await running.client.get("/" + "a" * 60_000)
    assert response.status_code == 404
    assert len(response.content) < 1000
    assert [line["path"] for line in lines] == ["/" + "a" * (MAX_SHOWN_PATH - 1)]


async def test_a_key_is_in_no_line_no_metric_and_no_answer(artifact: Path) -> None:
    secret = "s3cret-key"
    headers = [
        {"authorization": f"Bearer {secret}"},
        {"authorization": f"Bearer {secret}x"},
        {"x-api-key": secret},
        {"x-api-key": secret + "x"},
        {"authorization": f"Basic {secret}"},
    ]
    async with served(artifact, api_keys=secret) as running:
        with capture_logs() as lines:
            answers = [
                await running.client.request(method, path, headers=each, content=b"x")
                for each in headers
                for method, path in [("POST", door) for door in DOORS] + [("GET", "/model")]
            ]
            answers.append(await running.client.get("/metrics"))
    assert secret not in repr(lines)
    for answer in answers:
        assert secret not in answer.text
        assert secret not in repr(answer.headers)


KEY = {"x-api-key": "secret"}
REFUSED_EARLY = {
    "/v1/vision/detection": "/v1/vision/detection",
    "/v2/models/tiny/infer": "/v2/models/{name}/infer",
    "/v2/models/tiny/versions/1/infer": "/v2/models/{name}/versions/{version}/infer",
}


@pytest.mark.parametrize("cors_origins", ["", "https://shop.example"])
async def test_a_refusal_before_routing_is_counted_and_told_as_one_after_it(
    artifact: Path, cors_origins: str
) -> None:
    limits = {"max_batch_size": 1, "max_queue_images": 1, "max_images_per_request": 1}
    settings: dict[str, Any] = limits | {"cors_origins": cors_origins, "api_keys": "secret"}
    async with served(artifact, open_session=HeldSession, **settings) as running:
        session = held(running)
        runs = asyncio.create_task(running.client.post("/detect", content=IMAGE, headers=KEY))
        await running.until(lambda: session.batch_sizes == [1])
        waits = asyncio.create_task(running.client.post("/detect", content=IMAGE, headers=KEY))
        await running.until(lambda: running.queue_images == 1)
        origin = {"origin": "https://shop.example"}
        refused = await running.client.post("/detect", content=IMAGE, headers=origin)
        assert (refused.status_code, refused.json()["code"]) == (503, "queue_full")
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.headers["x-content-type-options"] == "nosniff"
        assert ("access-control-allow-origin" in refused.headers) == bool(cors_origins)
        # Before its key is looked at, which a refusal behind the route would be.
        for path, template in REFUSED_EARLY.items():
            early = await running.client.post(path, content=IMAGE, headers=origin)
            assert (early.status_code, "retry-after" in early.headers) == (503, True)
            assert "max_queue_images is 1" in early.json()["error"]  # in the protocol's own form
            assert ("access-control-allow-origin" in early.headers) == bool(cors_origins)
            text = (await running.client.get("/metrics")).text
            assert f'detector_requests_total{{route="{template}",status="503"}} 1.0' in text
        assert (await running.client.get("/detect")).status_code == 405
        text = (await running.client.get("/metrics")).text
        assert 'detector_requests_total{route="/detect",status="503"} 1.0' in text
        assert 'detector_rejected_total{reason="queue_full"} 4.0' in text
        session.gate.set()
        assert [(await each).status_code for each in (runs, waits)] == [200, 200]


class FaultySampler(Sampler):
    def should_sample(self, *_: object, **__: object) -> SamplingResult:
        raise ValueError("a header it does not like")

    def get_description(self) -> str:
        return "raises"


async def test_a_fault_in_what_reads_the_headers_is_answered_and_counted(artifact: Path) -> None:
    async with served(artifact) as running:
        app = RequestScope(
            running.app,
            service=running.service,
            tracing=Tracing(TracerProvider(sampler=FaultySampler())),
        )
        transport = httpx.ASGITransport(app)
        with capture_logs(processors=[merge_contextvars]) as lines:
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                answer = await client.get("/model", headers={"x-request-id": "mine"})
        text = (await running.client.get("/metrics")).text
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert (answer.json()["request_id"], answer.headers["x-request-id"]) == ("mine", "mine")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert 'detector_requests_total{route="unmatched",status="500"} 1.0' in text
    assert [line["request_id"] for line in lines] == ["mine", "mine"]
