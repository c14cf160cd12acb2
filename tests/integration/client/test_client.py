"""The client against our own server: in this process, and as a process of its own."""

import asyncio
import gzip
import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import cv2
import httpx
import pytest
import yolov8_fla_client.results as results
import yolov8_fla_client.settings as settings
from yolov8_fla_client import (
    AsyncClient,
    Client,
    ImageRefused,
    ImageResult,
    NamedImage,
    Refused,
    Retry,
    Unauthorized,
    Unavailable,
    UnexpectedResponse,
    Unreachable,
)
from yolov8_fla_client.images import Image
from yolov8_fla_client.results import Box, Detection

from tests.support.artifacts import paint
from tests.support.processes import LIMIT_S, ready
from tests.support.serving import RED, HeldSession, Served, encode, held, one_cell, served

pytestmark = pytest.mark.anyio

ONCE = Retry(attempts=1)
CELL = Detection(0, "RBC", 1.0, Box(32, 0, 64, 32))


def client_of(running: Served, **arguments: Any) -> AsyncClient:
    return AsyncClient("http://test", transport=httpx.ASGITransport(running.app), **arguments)


@pytest.fixture(scope="module")
def url(repo_dir: Path) -> Iterator[str]:
    """A server of the default weights."""
    with ready(repo_dir, repo_dir / "weights") as (_, http):
        yield str(http.base_url)


@pytest.fixture(scope="module")
def samples(repo_dir: Path) -> list[Path]:
    return sorted((repo_dir / "samples").glob("*.jpg"))


async def test_what_is_found_comes_as_values(artifact: Path) -> None:
    async with served(artifact) as running, client_of(running) as client:
        (found,) = await client.detect(one_cell())
        assert found.detections == (CELL,)
        assert (found.width, found.height, found.truncated, found.error) == (64, 64, False, None)
        assert found.model is not None
        assert found.model.name == "tiny"
        assert found.timings_ms is not None
        assert found.timings_ms.total > 0


async def test_every_schema_of_the_servers_answers_has_a_value_with_its_fields(
    artifact: Path,
) -> None:
    async with served(artifact) as running:
        document = (await running.client.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    responses = ["DetectResponse", "Health", "ModelDescription"]
    waiting, seen = list(responses), set()
    while waiting:
        seen.add(name := waiting.pop())
        if name in ("Metadata", "Certificate"):
            continue  # handed on as JSON
        text = json.dumps(schemas[name])
        waiting += [
            each
            for each in schemas
            if f'"#/components/schemas/{each}"' in text and each not in seen
        ]
        if name == "DetectResponse":
            # Its parts are in each ImageResult.
            assert set(schemas[name]["properties"]) == {"model", "results", "timings_ms"}
            continue
        ours = {each.name for each in fields(getattr(results, name))}
        beside = {"model", "timings_ms"} if name == "ImageResult" else set()
        assert ours - beside == set(schemas[name]["properties"]), name
    assert {"Box", "Detection", "ImageError", "ImageResult", "ModelName", "Timings"} <= seen


async def test_images_come_back_in_their_order_and_broken_ones_are_values(
    artifact: Path, tmp_path: Path
) -> None:
    left = tmp_path / "left.png"
    left.write_bytes(one_cell(cell=(0, 0)))
    images: list[Image] = [
        NamedImage("right", one_cell()),
        b"junk",
        left,
        paint((64, 64), {(1, 1): RED}),
    ]
    async with served(artifact) as running, client_of(running) as client:
        right, junk, found, array = await client.detect(images)
    assert [each.filename for each in (right, junk, found, array)] == [
        "right", None, str(left), None,
    ]  # fmt: skip
    assert right.detections == (CELL,)
    assert [each.detections[0].box for each in (found, array)] == [
        Box(0, 0, 32, 32), Box(32, 32, 64, 64),
    ]  # fmt: skip
    assert junk.error is not None
    assert (junk.error.code, junk.detections, junk.ok) == ("unsupported_image", (), False)


@pytest.mark.parametrize("count", [1, 3])
async def test_where_no_image_can_be_read_each_has_its_own_error(
    artifact: Path, count: int
) -> None:
    images = [b"junk", b"", one_cell()[:60]][:count]
    async with served(artifact) as running, client_of(running) as client:
        found = await client.detect(images)
    codes = [each.error.code for each in found if each.error]
    assert codes == ["unsupported_image", "undecodable_image", "undecodable_image"][:count]


async def test_parameters_reach_the_server(artifact: Path) -> None:
    image = encode(paint((64, 64), {(0, 0): RED, (0, 1): (200, 100, 0), (1, 0): (255, 200, 0)}))
    async with served(artifact) as running, client_of(running) as client:

        async def classes(**chosen: Any) -> list[str]:
            (found,) = await client.detect(image, **chosen)
            return [each.class_name for each in found.detections]

        assert await classes() == ["RBC", "Platelets", "WBC"]
        assert await classes(conf=0.9) == ["RBC", "Platelets"]
        assert await classes(classes=["WBC", 0]) == ["RBC", "WBC"]
        assert await classes(max_det=1, iou=0.5, agnostic_nms=True) == ["RBC"]
        with pytest.raises(Refused, match="conf is 7") as raised:
            await client.detect(image, conf=7)
        assert (raised.value.status, raised.value.code) == (422, "invalid_parameter")
        assert type(raised.value) is Refused
        with pytest.raises(TypeError, match="confidence"):
            await client.detect(image, confidence=0.5)  # type: ignore[call-arg]


async def test_the_servers_limits_make_more_requests_of_one_call(artifact: Path) -> None:
    images = [NamedImage(str(i), one_cell()) for i in range(7)]
    body_bytes = 2 * len(one_cell()) + 1000  # with the multipart around them
    limits: dict[str, Any] = {"max_images_per_request": 3, "max_body_bytes": body_bytes}
    async with served(artifact, **limits) as running, client_of(running) as client:
        found = await client.detect(images)
        (huge,) = await client.detect(b"x" * (body_bytes + 1))
        streamed = [each async for each in client.stream(images, images_per_request=7)]
    assert [each.filename for each in found] == list("0123456")
    assert all(each.detections == (CELL,) for each in found)
    assert sorted(each.filename or "" for each in streamed) == list("0123456")
    assert huge.error is not None
    assert huge.error.code == "body_too_large"
    assert f"max_body_bytes is {body_bytes}" in huge.error.detail


async def test_a_call_of_many_images_is_answered_whole(artifact: Path) -> None:
    async with served(artifact) as running, client_of(running) as client:
        found = await client.detect([one_cell()] * 150)
    assert len(found) == 150
    assert all(each.detections == (CELL,) for each in found)


async def test_annotated_images_are_jpeg_or_png(artifact: Path) -> None:
    async with served(artifact) as running, client_of(running) as client:
        jpeg = await client.annotated(one_cell(), conf=0.5)
        png = await client.annotated(one_cell(), png=True)
        with pytest.raises(ImageRefused, match="unsupported_image"):
            await client.annotated(b"junk")
        images: list[Image] = [
            NamedImage("a.png", one_cell()),
            NamedImage("a.jpg", one_cell()),
            b"junk",
        ]
        each = [x async for x in client.stream_annotated(images, ordered=True)]
    assert jpeg.startswith(b"\xff\xd8")
    assert png.startswith(b"\x89PNG")
    assert [(x.filename, x.media_type) for x in each] == [
        ("a.png", "image/png"), ("a.jpg", "image/jpeg"), (None, None),
    ]  # fmt: skip
    assert each[0].image == png
    assert each[2].error is not None


async def test_a_key_is_sent_where_the_server_asks_for_one(artifact: Path) -> None:
    async with served(artifact, api_keys="secret-key") as running:
        async with client_of(running, api_key="secret-key") as client:
            assert (await client.detect(one_cell()))[0].ok
            assert (await client.model()).name == "tiny"
        async with client_of(running, api_key="other") as client:
            with pytest.raises(Unauthorized) as raised:
                await client.detect(one_cell())
            assert raised.value.request_id
            assert (await client.health()).status == "ready"


async def test_health_and_model_tell_what_is_served(artifact: Path) -> None:
    async with served(artifact) as running, client_of(running) as client:
        health, model = await client.health(), await client.model()
        assert (health.status, health.model, health.version) == ("ready", "tiny", model.version)
        assert model.class_names == ("RBC", "WBC", "Platelets")
        assert model.metadata["precision"] == "fp32"


async def test_a_server_that_is_not_ready_tells_its_state_and_refuses(artifact: Path) -> None:
    async with (
        served(artifact, open_session=HeldSession) as running,
        client_of(running, retry=ONCE) as client,
    ):
        running.service.model.begin_drain()
        assert (await client.health()).status == "draining"
        with pytest.raises(Unavailable) as raised:
            await client.detect(one_cell())
        assert raised.value.code == "draining"
        assert raised.value.retry_after_s == 1


async def test_a_full_queue_is_waited_for(artifact: Path) -> None:
    retry = Retry(first_wait_s=0.001, longest_wait_s=0.001)
    async with (
        served(
            artifact, open_session=HeldSession, max_queue_images=1, max_images_per_request=1
        ) as running,
        client_of(running, retry=retry) as client,
    ):
        async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
            waiting = [group.create_task(client.detect(one_cell())) for _ in range(3)]
            await running.until(lambda: b"queue_full" in running.service.metrics.exposition())
            held(running).gate.set()
        assert all(each.result()[0].detections == (CELL,) for each in waiting)


async def test_another_server_than_ours_is_told(artifact: Path) -> None:
    def other(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/old/detect":
            return httpx.Response(301, headers={"Location": "https://new/detect"})
        return httpx.Response(200, text="<html>Welcome to nginx!</html>")

    with Client("http://other/", transport=httpx.MockTransport(other)) as client:
        for ask in (lambda: client.detect(b""), client.health, client.model):
            with pytest.raises(UnexpectedResponse, match="Welcome to nginx"):
                ask()
        with pytest.raises(UnexpectedResponse, match="an image was asked for, text/plain came"):
            client.annotated(b"")
    with (
        Client("http://other/old", transport=httpx.MockTransport(other)) as client,
        pytest.raises(UnexpectedResponse, match="https://new/detect"),
    ):
        client.detect(b"")


def test_a_proxy_without_a_server_behind_it_is_told_as_unavailable() -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(503, html="<h1>No server</h1>"))
    with (
        Client("http://proxy", transport=transport) as client,
        pytest.raises(Unavailable, match="503 service_unavailable: <h1>No server</h1>"),
    ):
        client.health()


async def test_an_answer_of_more_than_any_image_takes_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def large(_: httpx.Request) -> httpx.Response:
        packed = gzip.compress(bytes(2**20))
        return httpx.Response(200, content=packed, headers={"Content-Encoding": "gzip"})

    transport = httpx.MockTransport(large)
    monkeypatch.setattr(settings, "MAX_ANSWER_BYTES", 2**20 - 1)
    with (
        Client("http://x", transport=transport) as waiting,
        pytest.raises(Unreachable, match="over 1048575 bytes"),
    ):
        waiting.model()
    async with AsyncClient("http://x", transport=transport) as asynchronous:
        with pytest.raises(Unreachable, match="over 1048575 bytes"):
            await asynchronous.model()
    monkeypatch.undo()
    with (
        Client("http://x", transport=transport) as waiting,
        pytest.raises(UnexpectedResponse, match="answered 200"),
    ):
        waiting.model()


@pytest.mark.parametrize("wrong", ["", "localhost:8000", "ftp://x", "http://", "http://x:port"])
def test_an_address_that_is_none_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="no address"):
        Client(wrong)


def test_a_key_or_time_that_can_not_be_is_refused_without_telling_the_key() -> None:
    with pytest.raises(ValueError, match="printable ASCII") as raised:
        Client("http://x", api_key="secr\net")
    assert "secr" not in str(raised.value)
    for wrong in (0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="timeout_s"):
            Client("http://x", timeout_s=wrong)


def from_curl(url: str, image: Path, query: str) -> dict[str, Any]:
    if shutil.which("curl") is None:
        pytest.skip("curl is not on the PATH")
    command = ["curl", "-sS", "--fail", "-F", f"image=@{image}", f"{url}/detect?{query}"]
    done = subprocess.run(command, capture_output=True, check=True, timeout=LIMIT_S)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def as_json(result: ImageResult) -> list[dict[str, Any]]:
    return [
        {
            "class_id": each.class_id,
            "class_name": each.class_name,
            "score": each.score,
            "box": {
                "x1": each.box.x1, "y1": each.box.y1, "x2": each.box.x2, "y2": each.box.y2,
            },
        }
        for each in result.detections
    ]  # fmt: skip


def test_detections_are_those_that_curl_gets(url: str, samples: list[Path]) -> None:
    with Client(url) as client:
        found = client.detect(samples, conf=0.4, classes=["RBC", "WBC"])
    assert len(found) == len(samples) == 3
    for result, image in zip(found, samples, strict=True):
        assert result.filename == str(image)
        answer = from_curl(url, image, "conf=0.4&classes=RBC,WBC")
        assert as_json(result) == answer["results"][0]["detections"] != []


def test_a_folder_gives_what_single_images_give(url: str, samples: list[Path]) -> None:
    with Client(url) as client:
        alone = {each.name: client.detect(each)[0].detections for each in samples}
        streamed = {each.filename: each for each in client.detect_folder(samples[0].parent)}
    assert {name: each.detections for name, each in streamed.items()} == alone


def test_a_file_that_is_not_there_is_an_error_of_a_call_and_a_value_of_a_stream(
    url: str, samples: list[Path]
) -> None:
    missing = samples[0].parent / "missing.jpg"
    with Client(url) as client:
        with pytest.raises(FileNotFoundError):
            client.detect([samples[0], missing])
        good, bad = client.stream([samples[0], missing], ordered=True)
    assert good.ok
    assert bad.error is not None
    assert (bad.filename, bad.error.code) == (str(missing), "unreadable_file")


def test_the_library_for_images_and_the_client_agree_on_colours(
    url: str, samples: list[Path]
) -> None:
    # PNG: of a JPEG, the server may decode fewer pixels.
    bgr = cv2.imread(str(samples[0]))
    assert bgr is not None
    png = cv2.imencode(".png", bgr)[1].tobytes()
    with Client(url) as client:
        file, array = client.detect([png, bgr[..., ::-1]])
    assert file.detections == array.detections != ()


def test_a_bar_is_shown_where_it_is_asked_for(
    url: str, samples: list[Path], capfd: pytest.CaptureFixture[str]
) -> None:
    with Client(url) as client:
        assert len(list(client.detect_folder(samples[0].parent, progress=True))) == 3
        shown = capfd.readouterr()
        assert len(list(client.detect_folder(samples[0].parent))) == 3
    assert "3/3" in shown.err
    assert capfd.readouterr().err == ""
