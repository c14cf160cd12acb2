import asyncio
import base64
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import Message

from server.api.schemas import DetectResponse, Health, ModelDescription
from server.host import available_cpus
from server.inference.artifact import load_artifact
from server.inference.detector import Detector
from server.inference.session import Session
from server.version import this_build
from server.vision.nms import DetectParameters
from tests.support.artifacts import paint, tiny_artifact
from tests.support.serving import HeldSession, Served, encode, held, one_cell, served

pytestmark = pytest.mark.anyio

# Two classes, and two cells of one class that overlap with an IoU of about 0.3.
MIXED = paint((64, 64), {(0, 0): (255, 0, 80), (0, 1): (230, 0, 80), (1, 1): (200, 100, 0)})
JSON = "application/json"


@pytest.fixture
def client(running: Served) -> httpx.AsyncClient:
    return running.client


def found(response: httpx.Response, index: int = 0) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    detections: list[dict[str, Any]] = response.json()["results"][index]["detections"]
    return detections


def as_json(*images: bytes, **fields: object) -> dict[str, object]:
    return {"images": [base64.b64encode(image).decode() for image in images], **fields}


async def test_a_cell_comes_back_with_class_score_and_box(client: httpx.AsyncClient) -> None:
    response = await client.post("/detect", content=one_cell((64, 64), (0, 1)))
    assert found(response) == [
        {
            "class_id": 0,
            "class_name": "RBC",
            "score": 1.0,
            "box": {"x1": 32.0, "y1": 0.0, "x2": 64.0, "y2": 32.0},
        }
    ]


async def test_the_body_is_what_the_schema_says(client: httpx.AsyncClient, artifact: Path) -> None:
    response = await client.post("/detect", content=one_cell())
    assert response.headers["content-type"] == JSON
    body = DetectResponse.model_validate_json(response.content)
    assert (body.model.name, body.model.version) == ("tiny", load_artifact(artifact).version)
    assert (body.results[0].width, body.results[0].height) == (64, 64)
    times = body.timings_ms
    assert min(times.decode, times.queue, times.inference, times.postprocess) > 0
    assert times.decode + times.queue + times.inference + times.postprocess <= times.total


async def test_the_answer_is_that_of_the_detector_without_a_server(
    client: httpx.AsyncClient, artifact: Path
) -> None:
    loaded = load_artifact(artifact)
    detector = Detector(loaded, Session.open(loaded, device="cpu", threads=1))
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*hw, 3), np.uint8) for hw in [(64, 64), (90, 41), (30, 200)]]
    files = [("image", (f"{i}.png", encode(image))) for i, image in enumerate(images)]
    response = await client.post("/detect", params={"conf": 0.01}, files=files)
    for index, expected in enumerate(detector.detect(images, DetectParameters(conf=0.01))):
        detections = found(response, index)
        assert [d["class_id"] for d in detections] == expected.detections.class_ids.tolist()
        boxes = np.array([list(d["box"].values()) for d in detections]).reshape(-1, 4)
        np.testing.assert_allclose(boxes, expected.detections.boxes, atol=0.006)
        scores = [d["score"] for d in detections]
        np.testing.assert_allclose(scores, expected.detections.scores, atol=1e-5)


async def test_boxes_are_whole_where_a_request_does_not_clip_them(
    client: httpx.AsyncClient,
) -> None:
    image = encode(paint((64, 64), {(0, 1): (255, 0, 41)}))  # grows 5.125 pixels to each side
    (clipped,) = found(await client.post("/detect", content=image))
    (whole,) = found(await client.post("/detect", content=image, params={"clip": "false"}))
    assert clipped["box"] == {"x1": 26.88, "y1": 0, "x2": 64, "y2": 37.12}
    assert whole["box"] == {"x1": 26.875, "y1": -5.125, "x2": 69.125, "y2": 37.125}


async def test_the_three_forms_of_a_request_mean_the_same(client: httpx.AsyncClient) -> None:
    image = encode(MIXED)
    answers = [
        await client.post("/detect", content=image, headers={"content-type": kind})
        for kind in ("image/png", "application/octet-stream")
    ]
    answers.append(await client.post("/detect", files={"anything": ("a.png", image)}))
    answers.append(await client.post("/detect", json=as_json(image)))
    assert len(found(answers[0])) == 3
    assert all(found(answer) == found(answers[0]) for answer in answers)
    names = [answer.json()["results"][0]["filename"] for answer in answers]
    assert names == [None, None, "a.png", None]


@pytest.mark.parametrize("extension", [".png", ".jpg", ".webp", ".bmp", ".tiff"])
async def test_every_format_is_served(client: httpx.AsyncClient, extension: str) -> None:
    image = encode(paint((64, 64), {(0, 1): (255, 0, 0)}), extension)
    (cell,) = found(await client.post("/detect", content=image))
    assert cell["class_name"] == "RBC"


PARAMETERS: dict[str, tuple[dict[str, Any], int]] = {
    "conf": ({"conf": 0.7}, 2),
    "iou": ({"iou": 0.1}, 2),
    "max_det": ({"max_det": 1}, 1),
    "classes by id": ({"classes": [1]}, 1),
    "classes by name": ({"classes": ["RBC"]}, 2),
    "several classes": ({"classes": ["WBC", 0]}, 3),
    "no class": ({"classes": []}, 0),
    "agnostic_nms": ({"iou": 0.1, "agnostic_nms": True}, 1),
    "agnostic_nms off": ({"iou": 0.1, "agnostic_nms": False}, 2),
}


@pytest.mark.parametrize("case", PARAMETERS)
async def test_parameters_work_in_json_query_and_form(client: httpx.AsyncClient, case: str) -> None:
    fields, count = PARAMETERS[case]
    image = encode(
        paint((64, 64), {(0, 0): (255, 0, 80), (0, 1): (230, 0, 80), (1, 1): (160, 100, 255)})
    )
    assert len(found(await client.post("/detect", json=as_json(image, **fields)))) == count
    if fields.get("classes") == []:
        return  # an empty list can't be said in a query
    text = {
        k: [str(e) for e in v] if isinstance(v, list) else str(v).lower() for k, v in fields.items()
    }
    assert len(found(await client.post("/detect", params=text, content=image))) == count
    files = {"image": image}
    assert len(found(await client.post("/detect", data=text, files=files))) == count


async def test_sixteen_images_with_three_broken_ones_give_thirteen_answers_in_order(
    client: httpx.AsyncClient,
) -> None:
    sizes = [(64 + 32 * (i % 5), 64 + 32 * (i % 3)) for i in range(16)]
    files = [
        encode(np.full((*hw, 3), (255, 100 * (i % 3), 0), np.uint8)) for i, hw in enumerate(sizes)
    ]
    whole = files.copy()
    files[3] = b"not an image"
    files[7] = files[7][:60]
    files[12] = b""
    parts = [("image", (f"{i}.png", data)) for i, data in enumerate(files)]
    response = await client.post("/detect", files=parts)
    assert response.status_code == 200
    results = response.json()["results"]
    assert [result["filename"] for result in results] == [f"{i}.png" for i in range(16)]
    errors = {i: r["error"]["code"] for i, r in enumerate(results) if r["error"]}
    assert errors == {3: "unsupported_image", 7: "undecodable_image", 12: "undecodable_image"}
    for i in errors:
        assert results[i]["detections"] == []
        assert results[i]["width"] is results[i]["height"] is None
    for i in set(range(16)) - set(errors):
        assert (results[i]["height"], results[i]["width"]) == sizes[i]
        alone = await client.post("/detect", content=whole[i])
        assert results[i]["detections"] == found(alone)
        assert {d["class_id"] for d in results[i]["detections"]} == {i % 3}


async def test_requests_at_the_same_time_share_batches(artifact: Path) -> None:
    # A second of delay, so that decoding on a busy machine makes no smaller batches.
    limits: dict[str, Any] = {"max_batch_size": 4, "max_queue_delay_s": 1}
    async with served(artifact, open_session=HeldSession, **limits) as running:
        session = held(running)
        first = asyncio.create_task(running.client.post("/detect", content=one_cell()))
        await running.until(lambda: session.batch_sizes == [1])
        others = [
            asyncio.create_task(running.client.post("/detect", content=one_cell()))
            for _ in range(6)
        ]
        await running.until(lambda: running.queue_images == 6)
        session.gate.set()
        answers = await asyncio.gather(first, *others)
    assert session.batch_sizes == [1, 4, 2]
    assert all(len(found(answer)) == 1 for answer in answers)


async def test_truncated_says_that_more_would_pass(tmp_path: Path) -> None:
    artifact = tiny_artifact(tmp_path / "k2.onnx", max_candidates=2)
    async with served(artifact) as running:
        image = encode(paint((64, 64), {(r, c): (255, 0, 0) for r in (0, 1) for c in (0, 1)}))
        response = await running.client.post("/detect", content=image)
        assert response.json()["results"][0]["truncated"] is True
        response = await running.client.post("/detect", content=one_cell())
        assert response.json()["results"][0]["truncated"] is False


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("*/*", "image/jpeg"),
        ("image/png", "image/png"),
        ("image/png;q=0.5,image/jpeg", "image/jpeg"),
        ("text/html", "image/jpeg"),
    ],
)
async def test_format_image_draws_the_boxes(
    client: httpx.AsyncClient, accept: str, media_type: str
) -> None:
    image = np.zeros((128, 128, 3), np.uint8)
    image[:64, 64:] = (255, 0, 0)  # halved by the letterbox, it fills the upper right cell
    response = await client.post(
        "/detect",
        params={"format": "image"},
        content=encode(image),
        headers={"accept": accept},
    )
    assert response.status_code == 200
    assert response.headers["content-type"] == media_type
    assert response.headers["vary"] == "Accept"
    drawn = cv2.imdecode(np.frombuffer(response.content, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert drawn is not None
    assert drawn.shape == image.shape
    left, right, inside, outside = drawn[50, 64], drawn[50, 127], drawn[40, 100], drawn[100, 30]
    # Blue is what neither the red cell nor the black rest has; JPEG mixes colours over 16 pixels.
    assert left[2] > 60
    assert right[2] > 60
    np.testing.assert_allclose(inside, (255, 0, 0), atol=40)
    np.testing.assert_allclose(outside, (0, 0, 0), atol=10)


async def test_a_request_id_is_echoed_or_made(client: httpx.AsyncClient) -> None:
    sent = await client.get("/health/live", headers={"x-request-id": "my-id_1.2"})
    assert sent.headers["x-request-id"] == "my-id_1.2"
    made = {(await client.get("/health/live")).headers["x-request-id"] for _ in range(2)}
    assert len(made) == 2


@pytest.mark.parametrize("bad", ["", "a b", "a" * 129, 'a"b', "a\tb", "<script>", "é"])
async def test_a_request_id_that_could_do_harm_is_replaced(
    client: httpx.AsyncClient, bad: str
) -> None:
    headers = {b"x-request-id": bad.encode("latin-1")}
    response = await client.get("/health/live", headers=headers)
    assert response.headers["x-request-id"].isalnum()
    assert len(response.headers["x-request-id"]) == 32


async def test_server_timing_carries_the_stages(client: httpx.AsyncClient) -> None:
    response = await client.post("/detect", content=one_cell())
    entries = dict(entry.split(";dur=") for entry in response.headers["server-timing"].split(", "))
    assert list(entries) == ["decode", "queue", "inference", "postprocess", "total"]
    body = response.json()["timings_ms"]
    for stage in list(entries)[:-1]:
        assert float(entries[stage]) == pytest.approx(body[stage], abs=0.001)


async def test_a_client_that_leaves_is_not_inferred(artifact: Path) -> None:
    async with served(artifact, open_session=HeldSession, max_batch_size=1) as running:
        session = held(running)
        first = asyncio.create_task(running.client.post("/detect", content=one_cell()))
        await running.until(lambda: session.batch_sizes == [1])
        left = asyncio.Event()
        body: list[Message] = [{"type": "http.request", "body": one_cell(), "more_body": False}]

        async def receive() -> Message:
            if body:
                return body.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(_: Message) -> None:
            return None

        scope: dict[str, Any] = {"type": "http", "method": "POST", "path": "/detect"}
        scope |= {"headers": [], "query_string": b"", "http_version": "1.1", "scheme": "http"}
        leaving = asyncio.create_task(running.app(scope, receive, send))
        await running.until(lambda: running.queue_images == 1)
        left.set()
        await leaving
        assert running.queue_images == 0
        session.gate.set()
        assert len(found(await first)) == 1
        assert session.batch_sizes == [1]
        text = (await running.client.get("/metrics")).text
        assert 'detector_requests_total{route="/detect",status="499"} 1.0' in text


async def test_health_says_what_really_runs(client: httpx.AsyncClient, artifact: Path) -> None:
    response = await client.get("/health")
    assert response.status_code == 200
    assert Health.model_validate_json(response.content) == Health(
        status="ready",
        server_version=this_build().version,
        revision=this_build().revision,
        model="tiny",
        version=load_artifact(artifact).version,
        precision="fp32",
        reason=response.json()["reason"],
        provider="CPUExecutionProvider",
        device="cpu",
        cpu_fallback=None,
        instances=available_cpus(),  # the fixture's calls have one thread each
        max_batch_size=1,
        queue_images=0,
        max_queue_images=96,
    )
    assert (await client.get("/health/live")).json() == {"status": "live"}
    assert (await client.get("/health/ready")).json() == {"status": "ready"}


async def test_the_model_is_described_with_its_certificate(
    client: httpx.AsyncClient, artifact: Path
) -> None:
    loaded = load_artifact(artifact)
    body = ModelDescription.model_validate_json((await client.get("/model")).content)
    assert body == ModelDescription(version=loaded.version, metadata=loaded.metadata)


async def test_metrics_count_what_happened(client: httpx.AsyncClient) -> None:
    files = [("image", ("a.png", one_cell())), ("image", ("b.png", b"no image"))]
    await client.post("/detect", files=files)
    await client.post("/detect", content=b"no image")
    for path in ("/wp-login.php", "/docs", "/openapi.json"):
        await client.get(path)
    response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }
    assert samples["detector_requests_total", "/detect", "200"] == 1
    assert samples["detector_requests_total", "/detect", "415"] == 1
    assert samples["detector_requests_total", "404", "unmatched"] == 1
    assert samples["detector_requests_total", "/docs", "200"] == 1
    assert samples["detector_requests_total", "/openapi.json", "200"] == 1
    assert ("detector_requests_total", "200", "unmatched") not in samples
    assert samples["detector_images_total", "ok"] == 1
    assert samples["detector_images_total", "unsupported_image"] == 2
    assert samples["detector_rejected_total", "unsupported_image"] == 1
    assert samples["detector_rejected_total", "queue_full"] == 0
    assert samples["detector_request_seconds_count", "200"] == 1
    assert samples["detector_request_seconds_count", "415"] == 1
    assert samples["detector_batch_size_sum",] == 1
    assert samples["detector_inference_busy_seconds_total",] > 0
    assert samples["detector_inflight_requests",] == 1  # this one
    assert samples["detector_queue_images",] == 0
    assert samples["detector_max_queue_images",] == 96
    assert samples["detector_max_inflight_body_bytes",] == 256 * 2**20
    assert samples["detector_state", "ready"] == 1
    assert samples["detector_state", "starting"] == 0
    for stage in ("decode", "letterbox", "queue", "inference", "postprocess"):
        assert samples["detector_stage_seconds_count", stage] == 1
    (info,) = [key for key in samples if key[0] == "detector_model_info"]
    assert {"tiny", "fp32", "CPUExecutionProvider", "cpu"} < set(info)


async def test_openapi_describes_the_three_forms_and_the_errors(
    client: httpx.AsyncClient,
) -> None:
    detect = (await client.get("/openapi.json")).json()["paths"]["/detect"]["post"]
    assert set(detect["requestBody"]["content"]) == {
        "multipart/form-data",
        "image/*",
        "application/octet-stream",
        JSON,
    }
    names = {parameter["name"] for parameter in detect["parameters"]}
    assert names == {"conf", "iou", "max_det", "classes", "agnostic_nms", "clip", "format"}
    errors = {"400", "401", "413", "415", "422", "500", "503", "504"}
    assert set(detect["responses"]) == errors | {"200"}
    for status in errors:
        assert set(detect["responses"][status]["content"]) == {"application/problem+json"}
    assert set(detect["responses"]["200"]["content"]) == {JSON, "image/jpeg", "image/png"}
    assert (await client.get("/docs")).status_code == 200


@pytest.mark.parametrize("reason", [None, "no GPU is visible"])
async def test_a_model_on_the_cpu_instead_of_a_gpu_is_told_by_health_and_metrics(
    artifact: Path, reason: str | None
) -> None:
    async with served(artifact, open_session=HeldSession, cpu_fallback=reason) as running:
        assert (await running.client.get("/health")).json()["cpu_fallback"] == reason
        metrics = (await running.client.get("/metrics")).text
    assert f"\ndetector_cpu_fallback {float(reason is not None)}\n" in metrics
