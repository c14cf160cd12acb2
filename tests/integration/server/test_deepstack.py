"""The DeepStack form, with requests as its documentation's clients put them on the wire."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.api.deepstack import Failure, Predictions
from server.http.errors import INTERNAL_DETAIL
from tests.support.artifacts import POISON, paint
from tests.support.serving import (
    RED,
    NotANumber,
    Served,
    encode,
    one_cell,
    served,
)

pytestmark = pytest.mark.anyio
PATH = "/v1/vision/detection"
KEY = "Mysecretkey"
HALF = (192, 100, 0)  # score 0.504, class 1
IMAGE = encode(paint((64, 64), {(0, 0): RED, (1, 1): HALF}))
FAINT = encode(paint((64, 64), {(0, 1): (173, 0, 0)}))  # score 0.354


def part(disposition: str, content: bytes, *headers: str) -> bytes:
    lines = (*headers, f"Content-Disposition: form-data; {disposition}")
    return "\r\n".join(("--cut", *lines, "", "")).encode() + content + b"\r\n"


# As each client of the documentation writes the image into the body.
CLIENTS = {
    "Python requests": part('name="image"; filename="image"', IMAGE),
    "curl": part('name="image"; filename="a.png"', IMAGE, "Content-Type: image/png"),
    "a browser's FormData": part(
        'name="image"; filename="my image.png"', IMAGE, "Content-Type: image/png"
    ),
    "C# MultipartFormDataContent": part(
        "name=image; filename=test-image3.jpg; filename*=utf-8''test-image3.jpg", IMAGE
    ),
    "without a file name": part('name="image"', IMAGE, "Content-Type: image/jpeg"),
}


async def post(
    running: Served, *parts: bytes, quoted: bool = False, headers: dict[str, str] | None = None
) -> httpx.Response:
    boundary = '"cut"' if quoted else "cut"
    content_type = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    content = b"".join(parts) + b"--cut--\r\n"
    return await running.client.post(PATH, content=content, headers=content_type | (headers or {}))


def field(name: str, value: str) -> bytes:
    return part(f'name="{name}"', value.encode())


def image(content: bytes = IMAGE) -> bytes:
    return part('name="image"; filename="image"', content)


def check(response: httpx.Response, status: int, error: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    failure = Failure.model_validate_json(response.content)
    assert failure.code == status
    assert error in failure.error


@pytest.mark.parametrize("body", CLIENTS.values(), ids=CLIENTS)
@pytest.mark.parametrize("quoted", [True, False])
async def test_each_documented_client_gets_its_objects(
    running: Served, body: bytes, quoted: bool
) -> None:
    response = await post(running, body, quoted=quoted)
    assert response.status_code == 200
    answer = response.json()
    assert answer["success"] is True
    assert answer["predictions"] == [
        {"confidence": 1.0, "label": "RBC", "x_min": 0, "y_min": 0, "x_max": 32, "y_max": 32},
        {"confidence": 0.50394, "label": "WBC", "x_min": 32, "y_min": 32, "x_max": 64, "y_max": 64},
    ]
    corners = ("x_min", "y_min", "x_max", "y_max")
    assert all(type(found[name]) is int for found in answer["predictions"] for name in corners)


async def test_the_fields_of_codeproject_ai_are_there_and_true(running: Served) -> None:
    response = await post(running, image())
    answer = Predictions.model_validate_json(response.content, strict=True)
    assert (answer.message, answer.count, answer.command) == ("Found RBC, WBC", 2, "detect")
    assert (answer.moduleName, answer.executionProvider) == ("tiny", "CPUExecutionProvider")
    assert answer.inferenceMs <= answer.processMs + 1  # each is rounded
    assert answer.duration > 0
    assert answer.analysisRoundTripMs == pytest.approx(answer.duration * 1000, abs=1)
    nothing = (await post(running, image(encode(paint((8, 8), {}))))).json()
    assert (nothing["message"], nothing["count"]) == ("No objects found", 0)


async def test_a_message_names_three_objects(running: Served) -> None:
    cells = {(row, column): RED for row in range(2) for column in range(2)}
    response = await post(running, image(encode(paint((64, 64), cells))))
    assert response.json()["message"] == "Found RBC, RBC, RBC..."


async def test_the_least_confidence_is_0_4_unless_the_form_says_otherwise(running: Served) -> None:
    async def count(*fields: bytes) -> Any:
        return (await post(running, *fields, image(FAINT))).json()["count"]

    assert await count() == 0
    assert await count(field("min_confidence", "")) == 0
    assert await count(field("min_confidence", "0.35")) == 1
    assert await count(field("min_confidence", "0.36")) == 0
    assert await count(field("min_confidence", "0")) == 1


async def test_fields_of_other_software_are_left_alone(running: Served) -> None:
    response = await post(running, field("model", "ipcam"), field("pid", "7"), image())
    assert response.json()["count"] == 2


@pytest.mark.parametrize("value", ["2", "-0.1", "nan", "0,45", "high"])
async def test_a_confidence_that_is_none_is_refused(running: Served, value: str) -> None:
    check(await post(running, field("min_confidence", value), image()), 422, "min_confidence")


async def test_errors_have_the_documented_form(running: Served) -> None:
    twice = [field("min_confidence", "0.5")] * 2
    check(await post(running, *twice, image()), 422, "min_confidence is given more than once")
    check(await post(running, field("min_confidence", "0.5")), 400, "no image")
    check(await post(running, image(), image()), 422, "one image is taken, not 2")
    check(await post(running, image(IMAGE[:-20])), 422, "cut off")
    check(await post(running, image(b"GIF89a")), 415, "")
    raw = await running.client.post(PATH, content=IMAGE, headers={"Content-Type": "image/png"})
    check(raw, 415, "'image/png' is not served; send multipart/form-data")
    check(await running.client.post(PATH), 415, "multipart")
    check(await running.client.get(PATH), 405, "Method Not Allowed")
    check(await running.client.post("/v1/vision/face"), 404, "Not Found")
    poisoned = paint((64, 64), {})
    poisoned[0, 0] = POISON
    check(await post(running, image(encode(poisoned))), 500, INTERNAL_DETAIL)


async def test_a_fault_of_our_own_has_the_documented_form(artifact: Path) -> None:
    async with served(artifact, open_session=NotANumber) as running:
        check(await post(running, image()), 500, INTERNAL_DETAIL)


async def test_limits_are_those_of_all_doors(artifact: Path) -> None:
    limits: dict[str, Any] = {"max_body_bytes": 2000, "max_image_pixels": 100}
    async with served(artifact, **limits) as running:
        check(await post(running, image(bytes(3000))), 413, "max_body_bytes is 2000")
        check(await post(running, image(one_cell())), 413, "max_image_pixels is 100")


async def test_an_answer_carries_what_every_answer_carries(running: Served) -> None:
    response = await post(running, image(), headers={"X-Request-ID": "abc"})
    assert response.headers["x-request-id"] == "abc"
    assert "inference;dur=" in response.headers["server-timing"]
    metrics = (await running.client.get("/metrics")).text
    assert f'detector_requests_total{{route="{PATH}",status="200"}} 1.0' in metrics
    assert 'detector_images_total{outcome="ok"} 1.0' in metrics
    assert 'detector_request_seconds_count{status="200"} 1.0' in metrics


async def test_a_key_may_stand_in_the_form_or_in_a_header(artifact: Path) -> None:
    async with served(artifact, api_keys=["other", KEY]) as running:
        good, bad = field("api_key", KEY), field("api_key", "mysecretkey")
        assert (await post(running, image(), good)).status_code == 200
        assert (await post(running, image(), headers={"X-API-Key": KEY})).status_code == 200
        bearer = {"Authorization": f"Bearer {KEY}"}
        assert (await post(running, bad, image(), headers=bearer)).status_code == 200
        basic = {"Authorization": "Basic YTpi"}
        assert (await post(running, good, image(), headers=basic)).status_code == 200
        for refused in (
            await post(running, image()),
            await post(running, bad, image()),
            await post(running, field("api_key", ""), image()),
            await post(running, good, image(), headers={"X-API-Key": "no"}),
        ):
            check(refused, 401, "asks for a key")
            assert refused.headers["www-authenticate"] == "Bearer"


async def test_a_wrong_key_in_a_header_costs_no_body(artifact: Path) -> None:
    async def endless() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    headers = {"X-API-Key": "no", "Content-Type": "multipart/form-data; boundary=cut"}
    async with served(artifact, api_keys=[KEY]) as running:
        response = await running.client.post(PATH, content=endless(), headers=headers)
        check(response, 401, "asks for a key")


async def test_a_field_for_the_key_is_harmless_where_none_is_configured(running: Served) -> None:
    # Frigate sends an empty one.
    assert (await post(running, field("api_key", ""), image())).json()["success"] is True
