"""The Open Inference Protocol: NVIDIA's client against a real process, then what it can't send."""

import base64
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from tritonclient.http import (
    InferenceServerClient,
    InferInput,
    InferRequestedOutput,
    InferResult,
)
from tritonclient.utils import InferenceServerException

from server.api.kserve.messages import JSON_LENGTH_HEADER
from server.http.errors import INTERNAL_DETAIL
from server.inference.artifact import load_artifact
from tests.support.artifacts import POISON, paint, tiny_candidates
from tests.support.processes import ready
from tests.support.serving import (
    LIMIT_S,
    RED,
    NotANumber,
    Served,
    encode,
    one_cell,
    served,
)

KEY = "a-key"
OUTPUTS = ("boxes", "scores", "class_ids", "counts", "errors")
GREEN = (255, 100, 0)  # class 1
TWO_CELLS = encode(paint((64, 64), {(0, 0): RED, (1, 1): GREEN}), ".png")
NOTHING = encode(paint((64, 64), {}), ".jpg")
CUT = TWO_CELLS[:-20]


@pytest.fixture(scope="module")
def client(repo_dir: Path, artifact: Path) -> Iterator[InferenceServerClient]:
    limits = ("--max-images-per-request", "4", "--max-body-bytes", "200000")
    with ready(repo_dir, artifact, *limits) as (_, plain):
        address = f"{plain.base_url.host}:{plain.base_url.port}"
        triton = InferenceServerClient(address, network_timeout=LIMIT_S)
        yield triton
        triton.close()


def files(*images: bytes, binary: bool = True) -> list[InferInput]:
    values = np.empty(len(images), object)
    values[:] = images if binary else [base64.b64encode(image) for image in images]
    tensor = InferInput("image", [len(images)], "BYTES")
    return [tensor.set_data_from_numpy(values, binary_data=binary)]


def pixels(values: NDArray[np.uint8], binary: bool = True) -> list[InferInput]:
    tensor = InferInput("images", list(values.shape), "UINT8")
    return [tensor.set_data_from_numpy(values, binary_data=binary)]


def canvases(count: int, hw: tuple[int, int] = (64, 64)) -> NDArray[np.uint8]:
    return np.random.default_rng(count).integers(0, 256, (count, *hw, 3), np.uint8)


def test_the_client_finds_the_server_alive_and_ready(
    client: InferenceServerClient, artifact: Path
) -> None:
    version = load_artifact(artifact).version
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert client.is_model_ready("tiny-raw", version)
    assert not client.is_model_ready("other")
    assert not client.is_model_ready("tiny", "1")
    server = client.get_server_metadata()
    assert server["name"] == "yolov8-fla"
    assert server["extensions"] == ["binary_tensor_data"]


def test_the_client_reads_what_a_model_takes_and_answers(
    client: InferenceServerClient, artifact: Path
) -> None:
    version = load_artifact(artifact).version
    whole = client.get_model_metadata("tiny")
    assert whole == client.get_model_metadata("tiny", version)
    assert (whole["name"], whole["versions"]) == ("tiny", [version])
    assert whole["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    assert [(each["name"], each["shape"]) for each in whole["outputs"]] == [
        ("boxes", [-1, -1, 4]),
        ("scores", [-1, -1]),
        ("class_ids", [-1, -1]),
        ("counts", [-1]),
        ("errors", [-1]),
    ]
    assert whole["parameters"]["class_names"] == ["RBC", "WBC", "Platelets"]
    raw = client.get_model_metadata("tiny-raw")
    assert raw["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]
    assert raw["outputs"] == [{"name": "candidates", "datatype": "FP32", "shape": [-1, -1, 6]}]


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_image_files_become_detections(
    client: InferenceServerClient, binary_in: bool, binary_out: bool
) -> None:
    outputs = [InferRequestedOutput(name, binary_data=binary_out) for name in OUTPUTS]
    images = files(TWO_CELLS, NOTHING, one_cell((96, 32), (2, 0)), binary=binary_in)
    result = client.infer("tiny", images, outputs=outputs, request_id="a 1")
    assert result.get_response()["id"] == "a 1"
    assert result.get_response()["model_name"] == "tiny"
    assert result.as_numpy("counts").tolist() == [2, 0, 1]
    assert [bytes(text) if binary_out else text for text in result.as_numpy("errors")] == [
        b"" if binary_out else ""
    ] * 3
    boxes, scores, class_ids = (result.as_numpy(name) for name in OUTPUTS[:3])
    assert (boxes.dtype, scores.dtype, class_ids.dtype) == (np.float32, np.float32, np.int64)
    assert boxes.shape == (3, 2, 4)
    assert boxes[0].tolist() == [[0, 0, 32, 32], [32, 32, 64, 64]]
    np.testing.assert_allclose(boxes[2, 0], [0, 64, 32, 96], atol=25)  # scaled to 64 high
    assert boxes[1].tolist() == [[0] * 4] * 2
    np.testing.assert_allclose(scores, [[1, 1], [0, 0], [1, 0]], atol=1e-6)
    assert class_ids.tolist() == [[0, 1], [-1, -1], [0, -1]]


def test_without_a_choice_every_output_comes_as_binary_data(client: InferenceServerClient) -> None:
    result = client.infer("tiny", files(TWO_CELLS))
    assert [each["name"] for each in result.get_response()["outputs"]] == list(OUTPUTS)
    assert all(
        "binary_data_size" in each["parameters"] for each in result.get_response()["outputs"]
    )
    assert result.as_numpy("counts").tolist() == [2]


def test_one_output_may_be_chosen(client: InferenceServerClient) -> None:
    result = client.infer("tiny", files(TWO_CELLS), outputs=[InferRequestedOutput("counts")])
    assert [each["name"] for each in result.get_response()["outputs"]] == ["counts"]


def test_parameters_are_those_of_detect(client: InferenceServerClient, artifact: Path) -> None:
    version = load_artifact(artifact).version

    def counts(**parameters: Any) -> Any:
        result = client.infer("tiny", files(TWO_CELLS), version, parameters=parameters)
        return result.as_numpy("counts").tolist()

    assert counts(classes="WBC") == [1]
    assert counts(classes="0,1", max_det=1) == [1]
    assert counts(conf=1.0) == [0]
    assert counts(iou="0.5", agnostic_nms=True) == [2]


def test_async_calls_of_the_client_are_answered_each(client: InferenceServerClient) -> None:
    calls = [client.async_infer("tiny", files(image)) for image in (TWO_CELLS, NOTHING)]
    assert [call.get_result().as_numpy("counts").tolist() for call in calls] == [[2], [0]]


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("hw", [(64, 64), (32, 64)])
def test_raw_tensors_become_candidates(
    client: InferenceServerClient, binary: bool, hw: tuple[int, int]
) -> None:
    images = canvases(3, hw)
    outputs = [InferRequestedOutput("candidates", binary_data=binary)]
    result = client.infer("tiny-raw", pixels(images, binary), outputs=outputs)
    np.testing.assert_allclose(result.as_numpy("candidates"), tiny_candidates(images), atol=1e-4)


def test_an_unreadable_image_among_others_is_told_in_its_place(
    client: InferenceServerClient,
) -> None:
    result = client.infer("tiny", files(TWO_CELLS, CUT, b"GIF89a", NOTHING))
    assert result.as_numpy("counts").tolist() == [2, -1, -1, 0]
    errors = [text.decode() for text in result.as_numpy("errors")]
    assert errors[0] == errors[3] == ""
    assert errors[1] == "undecodable_image: the PNG image is cut off or corrupt"
    assert errors[2].startswith("unsupported_image: ")


def test_the_documented_example_runs(
    client: InferenceServerClient,
    repo_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = (repo_dir / "docs" / "other-protocols.md").read_text()
    code = page.partition("```python\n")[2].partition("```")[0]
    address = client._parsed_url
    code = code.replace("127.0.0.1:8000", f"{address.host}:{address.port}")
    code = code.replace("yolov8n-fla-bccd", "tiny").replace('"conf": 0.5', '"conf": 0')
    monkeypatch.chdir(repo_dir)
    exec(code, {})
    printed = capsys.readouterr().out.splitlines()
    assert {line.partition(" ")[0] for line in printed} == {"0", "1"}


def refusal(client: InferenceServerClient, *call: Any, **more: Any) -> tuple[str, str]:
    with pytest.raises(InferenceServerException) as caught:
        client.infer(*call, **more)
    return caught.value.status(), caught.value.message()


def test_the_client_is_told_what_is_wrong(client: InferenceServerClient) -> None:
    ask = InferRequestedOutput("masks")
    wrong_shape = pixels(canvases(1, (64, 96)))
    cases: list[tuple[str, str, tuple[Any, ...], dict[str, Any]]] = [
        ("404", "no model 'other'; served are tiny and tiny-raw", ("other", files(NOTHING)), {}),
        ("404", "no version '7' of tiny", ("tiny", files(NOTHING), "7"), {}),
        ("400", "unknown output 'masks'", ("tiny", files(NOTHING)), {"outputs": [ask]}),
        ("400", "unknown input 'images'", ("tiny", pixels(canvases(1))), {}),
        ("400", "64 x 96 pixels", ("tiny-raw", wrong_shape), {}),
        ("400", "holds no image", ("tiny-raw", pixels(canvases(0))), {}),
        ("400", "one tensor, not 2", ("tiny", files(NOTHING) * 2), {}),
        ("413", "at least 5 images; max_images_per_request is 4", ("tiny", files(*[b""] * 5)), {}),
        ("413", "max_body_bytes is 200000", ("tiny", files(bytes(200_000))), {}),
        ("422", "the PNG image is cut off", ("tiny", files(CUT)), {}),
        ("415", "none of the 2 images can be read", ("tiny", files(b"GIF89a", CUT)), {}),
        ("422", "conf is 2", ("tiny", files(NOTHING)), {"parameters": {"conf": 2}}),
        ("422", "unknown parameter 'size'", ("tiny", files(NOTHING)), {"parameters": {"size": 2}}),
        ("422", "'format'", ("tiny", files(NOTHING)), {"parameters": {"format": "image"}}),
        ("422", "tiny-raw takes no parameter 'conf'",
         ("tiny-raw", pixels(canvases(1))), {"parameters": {"conf": 0.5}}),
        ("415", "Content-Encoding", ("tiny", files(NOTHING)),
         {"request_compression_algorithm": "gzip"}),
    ]  # fmt: skip
    for status, message, call, more in cases:
        answered, told = refusal(client, *call, **more)
        assert (answered, message in told) == (status, True), (status, message, answered, told)


# What follows is sent by hand, in this process.


def message(*images: bytes, **head: Any) -> tuple[bytes, dict[str, str]]:
    """A request with binary files, and its headers."""
    content = b"".join(struct.pack("<I", len(image)) + image for image in images)
    tensor = {
        "name": "image",
        "shape": [len(images)],
        "datatype": "BYTES",
        "parameters": {"binary_data_size": len(content)},
    }
    document = json.dumps({"inputs": [tensor], **head}).encode()
    return document + content, {JSON_LENGTH_HEADER: str(len(document))}


async def infer(
    running: Served, *images: bytes, model: str = "tiny", headers: dict[str, str] | None = None
) -> httpx.Response:
    content, more = message(*images)
    url = f"/v2/models/{model}/infer"
    return await running.client.post(url, content=content, headers=more | (headers or {}))


def error_of(response: httpx.Response) -> str:
    assert response.headers["content-type"] == "application/json"
    assert set(response.json()) == {"error"}
    return str(response.json()["error"])


@pytest.mark.anyio
async def test_json_in_and_out_needs_no_client_library(running: Served) -> None:
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES"}
    data = {"data": [base64.b64encode(TWO_CELLS).decode()]}
    body = {"id": "7", "inputs": [tensor | data], "outputs": [{"name": "class_ids"}]}
    response = await running.client.post("/v2/models/tiny/infer", json=body)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert JSON_LENGTH_HEADER not in response.headers
    answer = response.json()
    assert answer.pop("model_version") == load_artifact(running.service.settings.model).version
    assert answer == {
        "model_name": "tiny",
        "id": "7",
        "outputs": [{"name": "class_ids", "datatype": "INT64", "shape": [1, 2], "data": [0, 1]}],
    }


@pytest.mark.anyio
async def test_an_answer_carries_what_every_answer_carries(running: Served) -> None:
    response = await infer(running, TWO_CELLS, headers={"X-Request-ID": "abc"})
    assert response.headers["x-request-id"] == "abc"
    for stage in ("decode", "queue", "inference", "postprocess", "total"):
        assert f"{stage};dur=" in response.headers["server-timing"]
    metrics = (await running.client.get("/metrics")).text
    route = 'route="/v2/models/{name}/infer",status="200"'
    assert f"detector_requests_total{{{route}}} 1.0" in metrics
    assert 'detector_images_total{outcome="ok"} 1.0' in metrics
    assert 'detector_request_seconds_count{status="200"} 1.0' in metrics


@pytest.mark.anyio
async def test_refusals_are_counted_and_errors_have_the_protocols_form(running: Served) -> None:
    response = await running.client.post("/v2/models/tiny/infer", content=b"{")
    assert response.status_code == 400
    assert "not valid JSON" in error_of(response)
    metrics = (await running.client.get("/metrics")).text
    assert 'detector_rejected_total{reason="malformed_request"} 1.0' in metrics
    for method, path, status in (
        ("GET", "/v2/models/other", 404),
        ("GET", "/v2/nothing", 404),
        ("GET", "/v2/models/tiny/infer", 405),
        ("DELETE", "/v2/models/tiny", 405),
    ):
        response = await running.client.request(method, path)
        assert response.status_code == status
        error_of(response)


@pytest.mark.anyio
async def test_the_pixels_of_all_images_are_counted_before_one_is_decoded(artifact: Path) -> None:
    async with served(artifact, max_image_pixels=8191, max_request_pixels=8191) as running:
        response = await infer(running, TWO_CELLS, TWO_CELLS)
        assert response.status_code == 413
        assert "8192 pixels together; max_request_pixels is 8191" in error_of(response)
        assert (await infer(running, TWO_CELLS)).status_code == 200


@pytest.mark.anyio
async def test_a_key_is_asked_for_by_all_but_the_probes(artifact: Path) -> None:
    async with served(artifact, api_keys=[KEY]) as running:
        for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/tiny/ready"):
            assert (await running.client.get(path)).status_code == 200
        for path in ("/v2", "/v2/models/tiny"):
            response = await running.client.get(path)
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
            error_of(response)
            keyed = {"Authorization": f"Bearer {KEY}"}
            assert (await running.client.get(path, headers=keyed)).status_code == 200
        assert (await infer(running, NOTHING)).status_code == 401
        assert (await infer(running, NOTHING, headers={"X-API-Key": KEY})).status_code == 200


@pytest.mark.anyio
async def test_a_failed_model_call_reveals_nothing(running: Served) -> None:
    poisoned = paint((64, 64), {})
    poisoned[0, 0] = POISON
    response = await infer(running, encode(poisoned))
    assert response.status_code == 500
    assert error_of(response) == INTERNAL_DETAIL
    body: dict[str, Any] = {"name": "images", "shape": [1, 64, 64, 3], "datatype": "UINT8"}
    body["data"] = poisoned.reshape(-1).tolist()
    response = await running.client.post("/v2/models/tiny-raw/infer", json={"inputs": [body]})
    assert response.status_code == 500
    assert error_of(response) == INTERNAL_DETAIL


@pytest.mark.anyio
async def test_a_fault_of_our_own_has_the_protocols_form(artifact: Path) -> None:
    async with served(artifact, open_session=NotANumber) as running:
        response = await infer(running, TWO_CELLS)
        assert response.status_code == 500
        assert error_of(response) == INTERNAL_DETAIL
        # The network's own numbers are handed on as they are, where the form has room for them.
        body: dict[str, Any] = {"name": "images", "shape": [1, 64, 64, 3], "datatype": "UINT8"}
        body["data"] = canvases(1).reshape(-1).tolist()
        output = {"name": "candidates", "parameters": {"binary_data": False}}
        for binary, status in ((False, 500), (True, 200)):
            output["parameters"] = {"binary_data": binary}
            request = {"inputs": [body], "outputs": [output]}
            response = await running.client.post("/v2/models/tiny-raw/infer", json=request)
            assert response.status_code == status


@pytest.mark.anyio
async def test_before_the_model_is_loaded_the_server_is_alive_and_not_ready(
    artifact: Path,
) -> None:
    async with served(artifact, wait_until_ready=False) as running:
        assert (await running.client.get("/v2/health/live")).status_code == 200
        for path in ("/v2/health/ready", "/v2/models/tiny", "/v2/models/tiny/ready"):
            response = await running.client.get(path)
            if running.service.model.state == "starting":
                assert response.status_code == 503
                assert response.headers["retry-after"]
                assert "being loaded" in error_of(response)
        assert (await infer(running, TWO_CELLS)).status_code in (200, 503)


@pytest.mark.anyio
async def test_a_draining_server_takes_no_more(running: Served) -> None:
    running.service.model.begin_drain()
    assert (await running.client.get("/v2/health/live")).status_code == 200
    assert (await running.client.get("/v2/health/ready")).status_code == 503
    assert "shutting down" in error_of(await infer(running, TWO_CELLS))


@pytest.mark.anyio
async def test_reading_takes_of_the_memory_for_all_bodies(artifact: Path) -> None:
    limits: dict[str, Any] = {"max_body_bytes": 30_000, "max_inflight_body_bytes": 40_000}
    async with served(artifact, **limits) as running:
        assert (await infer(running, bytes(10_000), NOTHING)).status_code == 200
        # Twice: the body, and the files in it.
        response = await infer(running, bytes(25_000), NOTHING)
        assert response.status_code == 413
        assert "max_inflight_body_bytes is 40000" in error_of(response)
        # All of it was given back.
        assert (await infer(running, bytes(10_000), NOTHING)).status_code == 200


@pytest.mark.anyio
async def test_openapi_describes_every_route(running: Served) -> None:
    paths = (await running.client.get("/openapi.json")).json()["paths"]
    ours = {path: set(methods) for path, methods in paths.items() if path.startswith("/v2")}
    assert ours == {
        "/v2": {"get"},
        "/v2/health/live": {"get"},
        "/v2/health/ready": {"get"},
        "/v2/models/{name}": {"get"},
        "/v2/models/{name}/ready": {"get"},
        "/v2/models/{name}/infer": {"post"},
        "/v2/models/{name}/versions/{version}": {"get"},
        "/v2/models/{name}/versions/{version}/ready": {"get"},
        "/v2/models/{name}/versions/{version}/infer": {"post"},
    }
    identifiers = [each["operationId"] for path in ours for each in paths[path].values()]
    assert len(set(identifiers)) == len(identifiers)
    answered = paths["/v2/models/{name}/infer"]["post"]["responses"]
    example = paths["/v2/models/{name}/infer"]["post"]["requestBody"]["content"]["application/json"]
    response = await running.client.post("/v2/models/tiny/infer", json=example["example"])
    assert [each["data"] for each in response.json()["outputs"]] == [[], [0]]
    assert sorted(map(int, answered)) == [200, 400, 401, 404, 413, 415, 422, 500, 503, 504]


@pytest.mark.anyio
async def test_the_length_of_the_json_is_found_in_headers_of_any_case(running: Served) -> None:
    content, headers = message(TWO_CELLS, parameters={"binary_data_output": True})
    lower = {name.lower(): value for name, value in headers.items()}
    response = await running.client.post("/v2/models/tiny/infer", content=content, headers=lower)
    length = int(response.headers[JSON_LENGTH_HEADER.upper()])
    result = InferResult.from_response_body(response.content, header_length=length)
    assert result.as_numpy("counts").tolist() == [2]
