"""Every row of the design's error table, and every code the server knows, as a client meets it."""

import asyncio
import base64
import json
import re
import struct
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.fuzz.seeds import png_chunk
from server.errors import DeploymentError, InferenceFailed, ServerError, SessionLost
from server.http.errors import STATUS, rejection_reasons, status_of
from server.inference.artifact import Artifact
from server.settings import Settings
from tests.support.artifacts import POISON, paint
from tests.support.serving import (
    LIMIT_S,
    HeldSession,
    LosingSession,
    NotANumber,
    Served,
    encode,
    held,
    one_cell,
    served,
)

pytestmark = pytest.mark.anyio
IMAGE = one_cell()
SMALL_LIMITS: dict[str, Any] = {
    "max_body_bytes": 100_000,
    "max_image_pixels": 10_000,
    "max_request_pixels": 15_000,
    "max_images_per_request": 3,
}


def check(response: httpx.Response, status: int, code: str, detail: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert set(body) == {"type", "title", "status", "detail", "code", "request_id"}
    assert body["type"] == f"urn:yolov8-fla:{code}"
    assert body["title"] == code.replace("_", " ").capitalize()
    assert body["status"] == status
    assert body["code"] == code
    assert re.search(detail, body["detail"]), body["detail"]
    assert body["request_id"] == response.headers["x-request-id"]


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header)


@dataclass
class Case:
    """One request that is refused for what it holds."""

    status: int
    code: str
    detail: str
    content: bytes = IMAGE
    content_type: str = "application/octet-stream"
    params: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)


def multipart_case(status: int, code: str, detail: str, body: bytes) -> Case:
    return Case(status, code, detail, body, "multipart/form-data; boundary=cut")


def json_case(status: int, code: str, detail: str, body: object) -> Case:
    return Case(status, code, detail, json.dumps(body).encode(), "application/json")


def part(
    content: bytes, headers: str = 'Content-Disposition: form-data; name="i"; filename="i"'
) -> bytes:
    return b"--cut\r\n" + headers.encode() + b"\r\n\r\n" + content + b"\r\n"


END = b"--cut--\r\n"
B64 = base64.b64encode(IMAGE).decode()
PARAMETER_FAULTS = {
    "conf": "nan",
    "iou": "1.01",
    "max_det": "0",
    "classes": "rbc",
    "agnostic_nms": "yes",
    "format": "xml",
    "confidence": "0.5",
}
CASES = {
    # 400
    "cut multipart": multipart_case(400, "malformed_request", "last boundary", part(IMAGE)),
    "no multipart": multipart_case(
        400, "malformed_request", "no boundary as its Content-Type", b"hello"
    ),
    "no part name": multipart_case(400, "malformed_request", "name", part(b"", "A: b") + END),
    "no boundary": Case(400, "malformed_request", "boundary", IMAGE, "multipart/form-data"),
    "no json": Case(
        400,
        "malformed_request",
        r"not valid JSON: unexpected end of data: line 2 column 12 \(char 13\)$",
        '{\n"filé": "x"'.encode(),
        "application/json",
    ),
    "json list": json_case(400, "malformed_request", "must be an object", []),
    "json text": json_case(400, "malformed_request", "must be a list", {"images": B64}),
    "no base64": json_case(400, "malformed_request", r"images\[1\]", {"images": [B64, "?"]}),
    "url": json_case(
        400,
        "malformed_request",
        r"^images\[1\] is a URL; URLs are not fetched: send the file as base64, or to /detect as "
        "multipart/form-data$",
        {"images": [B64, "HTTPS://example.org/a.jpg?signature=secret"]},
    ),
    "empty body": Case(400, "no_image", "no image", b""),
    "empty body for json": Case(400, "no_image", "no image$", b"", "application/json"),
    "empty body for multipart": multipart_case(400, "no_image", "no image$", b""),
    "empty form": multipart_case(400, "no_image", "no image", END),
    "empty json": json_case(400, "no_image", "no image", {}),
    "text for a file": multipart_case(
        400,
        "no_image",
        "no image: field 'image' is text; a file is sent as image=@FILE$",
        part(b"1", 'Content-Disposition: form-data; name="conf"')
        + part(b"hello", 'Content-Disposition: form-data; name="image"')
        + END,
    ),
    "other json key": json_case(
        400,
        "no_image",
        r"no image: unknown field 'image'; images come as \"images\": \[",
        {"conf": 0.5, "image": B64},
    ),
    "long json key": json_case(400, "no_image", "'x{50,60}\\.\\.\\.;", {"x" * 10_000: B64}),
    "only parameters": json_case(400, "no_image", "no image$", {"conf": 0.5}),
    "empty list": json_case(400, "no_image", "no image", {"images": []}),
    # 413
    "body": Case(413, "body_too_large", "100001 bytes; max_body_bytes is 100000", b"x" * 100_001),
    "images in multipart": multipart_case(
        413, "too_many_images", "4 images; max_images_per_request is 3", part(IMAGE) * 4 + END
    ),
    "images in json": json_case(
        413, "too_many_images", "4 images; max_images_per_request is 3", {"images": [B64] * 4}
    ),
    "pixels": Case(
        413,
        "too_many_pixels",
        "10100 .*; max_image_pixels is 10000$",
        encode(paint((100, 101), {})),
    ),
    "pixels of all images": multipart_case(
        413,
        "too_many_request_pixels",
        "^the 3 images have 18192 pixels together; max_request_pixels is 15000$",
        part(encode(paint((100, 100), {}))) + part(IMAGE) * 2 + END,
    ),
    "pixels of all images in json": json_case(
        413,
        "too_many_request_pixels",
        "18192 .* 15000$",
        {"images": [base64.b64encode(encode(paint((100, 100), {}))).decode(), B64, B64]},
    ),
    "pixels of a bomb": Case(
        413, "too_many_pixels", "1089000000.*10000", png_header(33_000, 33_000)
    ),
    # 415
    "text": Case(415, "unsupported_image", "", b"not an image at all"),
    "gif": Case(415, "unsupported_image", "", b"GIF89a" + bytes(100)),
    "content type": Case(415, "unsupported_image", "text/plain", IMAGE, "text/plain"),
    "urlencoded": Case(
        415, "unsupported_image", "multipart/form-data", IMAGE, "application/x-www-form-urlencoded"
    ),
    "gzip": Case(415, "unsupported_image", "gzip", headers={"content-encoding": "gzip"}),
    # 422
    "truncated": Case(422, "undecodable_image", "", IMAGE[: len(IMAGE) // 2]),
    "truncated jpeg": Case(422, "undecodable_image", "", encode(paint((64, 64), {}), ".jpg")[:-20]),
    "corrupt": Case(422, "undecodable_image", "", IMAGE[:50] + bytes(20) + IMAGE[70:]),
    "empty file": multipart_case(422, "undecodable_image", "", part(b"") + END),
    "format of many": Case(
        422,
        "invalid_parameter",
        "format=image takes one image, not 2",
        json.dumps({"images": [B64, B64], "format": "image"}).encode(),
        "application/json",
    ),
    "twice": Case(422, "invalid_parameter", "more than once", params={"conf": ["0.1", "0.2"]}),
    "unknown json field": json_case(
        422, "invalid_parameter", "'image'", {"images": [B64], "image": B64}
    ),
    "json boolean": json_case(
        422, "invalid_parameter", "agnostic_nms", {"images": [B64], "agnostic_nms": "no"}
    ),
} | {
    f"{name}={value}": Case(422, "invalid_parameter", name, params={name: value})
    for name, value in PARAMETER_FAULTS.items()
}
# Those that have tests of their own below.
OTHER_CODES = {"unauthorized", "queue_full", "not_ready", "draining", "deadline_exceeded"}
OTHER_CODES |= {"inference_failed"}
# In test_reload, test_open_inference, test_hostile_http, test_memory_limit.
OTHER_CODES |= {
    "keys_not_configured",
    "reload_failed",
    "not_found",
    "uploads_full",
    "too_much_memory",
}


@pytest.fixture
async def running(artifact: Path) -> AsyncIterator[Served]:
    async with served(artifact, **SMALL_LIMITS) as running:
        yield running


@pytest.mark.parametrize("name", CASES)
async def test_what_is_wrong_with_a_request_is_said(running: Served, name: str) -> None:
    case = CASES[name]
    response = await running.client.post(
        "/detect",
        content=case.content,
        params=case.params,
        headers={"content-type": case.content_type} | case.headers,
    )
    check(response, case.status, case.code, case.detail)
    text = (await running.client.get("/metrics")).text
    assert f'detector_rejected_total{{reason="{case.code}"}} 1.0' in text
    assert running.queue_images == 0
    assert (await running.client.post("/detect", content=IMAGE)).status_code == 200


def test_every_code_is_sent_over_http_by_some_test() -> None:
    # too_large is TooLarge's default; nothing raises it without saying which limit it was.
    sent = {case.code for case in CASES.values()} | OTHER_CODES | {"too_large"}
    assert sent == set(rejection_reasons(ServerError))


def test_every_error_has_a_row_in_the_table() -> None:
    def leaves(kind: type[ServerError]) -> list[type[ServerError]]:
        below = kind.__subclasses__()
        return [leaf for each in below for leaf in leaves(each)] if below else [kind]

    for kind in leaves(ServerError):
        if not issubclass(kind, DeploymentError | SessionLost):
            assert any(issubclass(kind, row) for row, _ in STATUS), kind
    assert status_of(InferenceFailed("")) == 500


@pytest.mark.parametrize(
    ("path", "method", "status", "code"),
    [
        ("/nothing", "GET", 404, "not_found"),
        ("/detect/", "POST", 404, "not_found"),
        ("/detect", "GET", 405, "method_not_allowed"),
        ("/metrics", "POST", 405, "method_not_allowed"),
    ],
)
async def test_the_frameworks_errors_have_the_same_form(
    running: Served, path: str, method: str, status: int, code: str
) -> None:
    response = await running.client.request(method, path)
    check(response, status, code, f"{method} {path}")
    assert ("allow" in response.headers) == (status == 405)


async def test_what_is_not_decoded_does_not_count_among_the_pixels_of_a_request(
    running: Served,
) -> None:
    bomb, broken = png_header(33_000, 33_000), png_header(99, 99)[:20]
    files = [("i", (name, each)) for name, each in (("a", bomb), ("b", broken), ("c", IMAGE))]
    response = await running.client.post("/detect", files=files)
    assert response.status_code == 200
    codes = [each["error"] and each["error"]["code"] for each in response.json()["results"]]
    assert codes == ["too_many_pixels", "undecodable_image", None]


async def test_too_many_pixels_are_refused_before_a_place_in_the_queue_is_asked_for(
    artifact: Path,
) -> None:
    async with served(
        artifact,
        open_session=HeldSession,
        max_batch_size=1,
        max_queue_images=2,
        max_images_per_request=2,
        max_image_pixels=4096,
        max_request_pixels=8191,
    ) as running:
        session = held(running)
        others = [asyncio.create_task(running.client.post("/detect", content=IMAGE))]
        await running.until(lambda: session.batch_sizes == [1])
        others.append(asyncio.create_task(running.client.post("/detect", content=IMAGE)))
        await running.until(lambda: running.queue_images == 1)
        files = [("i", ("a", IMAGE)), ("i", ("b", IMAGE))]
        response = await running.client.post("/detect", files=files)
        check(response, 413, "too_many_request_pixels", "8192 .* 8191$")
        session.gate.set()
        assert {(await other).status_code for other in others} == {200}


async def test_without_a_readable_image_the_first_error_is_the_requests(running: Served) -> None:
    large = encode(paint((100, 101), {}))
    files = [("i", ("a", IMAGE[:50])), ("i", ("b", b"no image")), ("i", ("c", large))]
    response = await running.client.post("/detect", files=files)
    check(
        response, 422, "undecodable_image", "^none of the 3 images can be read; the first, a: the "
    )
    bare = base64.b64encode(large).decode()
    response = await running.client.post("/detect", json={"images": [bare, "AAAA"]})
    check(response, 413, "too_many_pixels", "^none of the 2 images can be read; the first: the ")
    response = await running.client.post("/detect", files=files[:1])
    check(response, 422, "undecodable_image", "^the PNG image is cut off")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Bearer "},
        {"authorization": "Basic key-one"},
        {"authorization": "key-one"},
        {"x-api-key": "wrong"},
        {"x-api-key": ""},
        {"x-api-key": "key-one,key-two"},
        {"authorization": "Bearer wrong", "x-api-key": "key-one"},
    ],
)
async def test_a_request_without_a_right_key_is_refused(
    artifact: Path, headers: dict[str, str]
) -> None:
    async with served(artifact, api_keys="key-one,key-two") as running:
        for method, path in [("POST", "/detect"), ("GET", "/model")]:
            response = await running.client.request(method, path, headers=headers, content=IMAGE)
            check(response, 401, "unauthorized", "Authorization: Bearer")
            assert response.headers["www-authenticate"] == "Bearer"
            assert "key-one" not in response.text
        for path in ("/health", "/health/live", "/health/ready", "/metrics"):
            assert (await running.client.get(path)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer key-one"},
        {"authorization": "bearer key-two"},
        {"x-api-key": "key-two"},
        httpx.Headers({"x-api-key": "ключ"}, encoding="utf-8"),
    ],
)
async def test_a_right_key_is_let_through(
    artifact: Path, headers: dict[str, str] | httpx.Headers
) -> None:
    async with served(artifact, api_keys="key-one,key-two,ключ") as running:
        for method, path in [("POST", "/detect"), ("GET", "/model")]:
            response = await running.client.request(method, path, headers=headers, content=IMAGE)
            assert response.status_code == 200


async def test_a_full_queue_is_refused_with_a_time_to_come_again(artifact: Path) -> None:
    limits: dict[str, Any] = {
        "max_batch_size": 1,
        "max_queue_images": 2,
        "max_images_per_request": 2,
    }
    async with served(artifact, open_session=HeldSession, **limits) as running:
        session = held(running)
        runs = asyncio.create_task(running.client.post("/detect", content=IMAGE))
        await running.until(lambda: session.batch_sizes == [1])
        waits = asyncio.create_task(running.client.post("/detect", content=IMAGE))
        await running.until(lambda: running.queue_images == 1)
        two = await running.client.post("/detect", json={"images": [B64, B64]})
        check(
            two, 503, "queue_full", "1 images already wait and 2 more came; max_queue_images is 2"
        )
        also_waits = asyncio.create_task(running.client.post("/detect", content=IMAGE))
        await running.until(lambda: running.queue_images == 2)
        one = await running.client.post("/detect", content=IMAGE)
        check(one, 503, "queue_full", "2 images wait; max_queue_images is 2")
        for response in (one, two):
            assert int(response.headers["retry-after"]) >= 1
        session.gate.set()
        answers = await asyncio.gather(runs, waits, also_waits)
    assert [answer.status_code for answer in answers] == [200, 200, 200]


async def test_before_the_model_is_loaded_requests_are_told_to_come_again(artifact: Path) -> None:
    gate = threading.Event()

    def open_late(artifact: Artifact, settings: Settings) -> HeldSession:
        assert gate.wait(LIMIT_S)
        return HeldSession(artifact, settings)

    async with served(artifact, open_session=open_late, wait_until_ready=False) as running:
        response = await running.client.post("/detect", content=IMAGE)
        check(response, 503, "not_ready", "being loaded")
        assert response.headers["retry-after"] == "1"
        check(await running.client.get("/health/ready"), 503, "not_ready", "being loaded")
        health = await running.client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "starting")
        assert health.json()["provider"] is None
        assert (await running.client.get("/health/live")).status_code == 200
        check(await running.client.get("/model"), 503, "not_ready", "being loaded")
        gate.set()
        await running.until(lambda: running.service.model.state == "ready")
        assert (await running.client.get("/health/ready")).status_code == 200


async def test_while_draining_new_requests_are_refused_and_old_ones_answered(
    artifact: Path,
) -> None:
    async with served(artifact, open_session=HeldSession) as running:
        session = held(running)
        accepted = asyncio.create_task(running.client.post("/detect", content=IMAGE))
        await running.until(lambda: session.batch_sizes == [1])
        running.service.model.begin_drain()
        response = await running.client.post("/detect", content=IMAGE)
        check(response, 503, "draining", "shutting down")
        assert int(response.headers["retry-after"]) >= 1
        check(await running.client.get("/health/ready"), 503, "draining", "shutting down")
        assert (await running.client.get("/health")).json()["status"] == "draining"
        assert (await running.client.get("/health/live")).status_code == 200
        session.gate.set()
        assert (await accepted).status_code == 200


async def test_what_is_not_finished_at_the_end_of_the_drain_is_told_so(artifact: Path) -> None:
    async with served(artifact, open_session=HeldSession, drain_timeout_s=0) as running:
        session = held(running)
        accepted = asyncio.create_task(running.client.post("/detect", content=IMAGE))
        await running.until(lambda: session.batch_sizes == [1])
        running.service.model.begin_drain()
        check(await accepted, 503, "draining", "before the answer was ready")
        session.gate.set()


async def test_a_request_past_its_deadline_is_not_inferred(artifact: Path) -> None:
    limits: dict[str, Any] = {"max_batch_size": 1, "request_timeout_s": 0.2}
    async with served(artifact, open_session=HeldSession, **limits) as running:
        session = held(running)
        runs = asyncio.create_task(running.client.post("/detect", content=IMAGE))
        await running.until(lambda: session.batch_sizes == [1])
        waits = asyncio.create_task(running.client.post("/detect", content=IMAGE))
        for response in await asyncio.gather(runs, waits):
            check(response, 504, "deadline_exceeded", r"over 0\.2 s")
        session.gate.set()
        assert (await running.client.post("/detect", content=IMAGE)).status_code == 200
        assert session.batch_sizes == [1, 1]


async def test_a_failed_inference_reveals_nothing_and_hurts_nobody_else(running: Served) -> None:
    poison = paint((64, 64), {})
    poison[0, 0] = POISON
    response = await running.client.post("/detect", content=encode(poison))
    check(response, 500, "inference_failed", "its log has the reason under this request id")
    for internal in ("onnx", "Gather", "Traceback", "batch", "/"):
        assert internal not in response.json()["detail"]
    assert (await running.client.post("/detect", content=IMAGE)).status_code == 200
    metrics = (await running.client.get("/metrics")).text
    assert 'detector_images_total{outcome="inference_failed"} 1.0' in metrics
    assert 'detector_images_total{outcome="ok"} 1.0' in metrics


class Shapeless(HeldSession):
    """Answers what no session should, so that the code behind it fails."""

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.zeros((len(images), 1), np.float32)


class Dead(BaseException):
    """A fault that no batch may survive."""


class Dying(HeldSession):
    """Takes the batch loop down with its first batch."""

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        raise Dead("the device is gone")


class Unwarmable(HeldSession):
    """Can be opened but not used."""

    def warm_up(self, batch_sizes: Sequence[int]) -> None:
        raise InferenceFailed("no memory")


async def test_a_fault_of_our_own_reveals_nothing(artifact: Path) -> None:
    async with served(artifact, open_session=Shapeless) as running:
        response = await running.client.post("/detect", content=IMAGE)
        check(response, 500, "internal_error", "its log has the reason under this request id")
        assert (await running.client.get("/health/live")).status_code == 200
        text = (await running.client.get("/metrics")).text
        assert 'detector_requests_total{route="/detect",status="500"} 1.0' in text
        assert running.queue_images == 0


async def test_a_box_that_json_cannot_hold_is_a_fault_of_our_own(artifact: Path) -> None:
    async with served(artifact, open_session=NotANumber) as running:
        response = await running.client.post("/detect", content=IMAGE)
        check(response, 500, "internal_error", "its log has the reason under this request id")


async def test_a_lost_session_fails_its_batch_and_ends_the_process(artifact: Path) -> None:
    async with served(artifact, open_session=LosingSession) as running:
        check(await running.client.post("/detect", content=IMAGE), 500, "inference_failed", "log")
        await running.until(lambda: bool(running.failures))
        assert isinstance(running.failures[0], SessionLost)
        assert "illegal memory access" in str(running.failures[0])
        check(await running.client.get("/health/live"), 503, "not_ready", "stopped")


async def test_a_request_under_way_does_not_hold_up_the_end_of_a_failed_service(
    artifact: Path,
) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x"
            await asyncio.sleep(0)

    async with served(artifact, open_session=LosingSession) as running:
        slow = asyncio.create_task(running.client.post("/detect", content=endless()))
        await running.client.post("/detect", content=IMAGE)
        await running.until(lambda: bool(running.failures))
        running.service.model.begin_drain()  # as a signal would: no more time for it
        check(await slow, 503, "not_ready", "stopped")
        assert running.service.model.state == "failed"


async def test_a_dead_batch_loop_fails_liveness_and_ends_the_process(artifact: Path) -> None:
    async with served(artifact, open_session=Dying) as running:
        check(await running.client.post("/detect", content=IMAGE), 500, "inference_failed", "log")
        await running.until(lambda: bool(running.failures))
        assert isinstance(running.failures[0], Dead)
        check(await running.client.get("/health/live"), 503, "not_ready", "stopped")
        check(await running.client.get("/health/ready"), 503, "not_ready", "stopped")
        check(await running.client.post("/detect", content=IMAGE), 503, "not_ready", "stopped")
        assert (await running.client.get("/health")).json()["status"] == "failed"


async def test_a_model_that_cannot_warm_up_never_gets_ready(artifact: Path) -> None:
    async with served(artifact, open_session=Unwarmable, wait_until_ready=False) as running:
        await running.until(lambda: bool(running.failures))
        assert isinstance(running.failures[0], DeploymentError)
        assert "warm-up failed: no memory" in str(running.failures[0])
