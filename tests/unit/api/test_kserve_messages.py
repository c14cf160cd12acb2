"""The infer call's messages, against the client that wrote the protocol, and against liars."""

import base64
import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from tritonclient.http import InferInput, InferRequestedOutput, InferResult
from tritonclient.http._utils import _get_inference_request

from server.api.kserve.messages import (
    JSON_LIMITS,
    InferRequest,
    parsed_bytes,
    read_infer_request,
    write_infer_response,
)
from server.api.kserve.tensors import (
    Datatype,
    InputTensor,
    OutputTensor,
    TensorSpec,
    check_against,
    read_files,
    read_pixels,
)
from server.errors import MalformedRequest

FILES = TensorSpec("image", "BYTES", (-1,))
PIXELS = TensorSpec("images", "UINT8", (-1, -1, -1, 3))
OUTPUTS = [TensorSpec("boxes", "FP32", (-1, -1, 4)), TensorSpec("errors", "BYTES", (-1,))]

pixel_arrays = hnp.arrays(
    np.uint8, st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), st.just(3))
)


def sent(
    name: str, datatype: str, values: NDArray[Any], binary: bool, **request: Any
) -> tuple[bytes, str | None]:
    """The body that tritonclient sends, and its header with the length of the JSON."""
    tensor = InferInput(name, list(values.shape), datatype)
    tensor.set_data_from_numpy(values, binary_data=binary)
    settings = {
        "request_id": "",
        "outputs": None,
        "sequence_id": 0,
        "sequence_start": False,
        "sequence_end": False,
        "priority": 0,
        "timeout": None,
        "custom_parameters": None,
    }
    body, length = _get_inference_request([tensor], **(settings | request))
    return body, None if length is None else str(length)


def read(body: bytes, json_length: str | None = None) -> InferRequest:
    parsed_bytes(body, json_length)
    return read_infer_request(body, json_length, OUTPUTS)


def request_with(binary: bytes = b"", **fields: Any) -> tuple[bytes, str]:
    """A valid request for two files of which some fields are exchanged."""
    elements = struct.pack("<I", 2) + b"ab" + struct.pack("<I", 0)
    tensor: dict[str, Any] = {
        "name": "image",
        "shape": [2],
        "datatype": "BYTES",
        "parameters": {"binary_data_size": len(binary or elements)},
    }
    document = {"inputs": [{**tensor, **fields}]}
    head = json.dumps(document).encode()
    return head + (binary or elements), str(len(head))


@given(st.lists(st.binary(max_size=20), max_size=5))
def test_files_arrive_as_tritonclient_sent_them(files: list[bytes]) -> None:
    values = np.empty(len(files), object)
    values[:] = files
    request = read(*sent("image", "BYTES", values, binary=True))
    check_against(request.input, FILES)
    assert read_files(request.input) == files


@given(pixel_arrays, st.booleans())
def test_pixels_arrive_as_tritonclient_sent_them(pixels: NDArray[np.uint8], binary: bool) -> None:
    request = read(*sent("images", "UINT8", pixels, binary))
    check_against(request.input, PIXELS)
    arrived = read_pixels(request.input)
    assert arrived.dtype == np.uint8
    np.testing.assert_array_equal(arrived, pixels)


@given(pixel_arrays)
def test_nested_lists_are_the_same_tensor(pixels: NDArray[np.uint8]) -> None:
    tensor = InputTensor("images", "UINT8", pixels.shape, pixels.tolist())
    np.testing.assert_array_equal(read_pixels(tensor), pixels)


def test_a_byte_order_mark_before_json_is_skipped_and_counts_as_its_length_does() -> None:
    body, json_length = request_with()
    marked = b"\xef\xbb\xbf" + body
    longer = str(int(json_length) + 3)
    assert parsed_bytes(marked, longer) <= parsed_bytes(body, json_length) + 3 * 2
    assert read_files(read(marked, longer).input) == [b"ab", b""]
    with pytest.raises(MalformedRequest):
        read(marked, json_length)
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": ["YQ"]}
    document = json.dumps({"inputs": [tensor]}).encode("utf-8-sig")
    assert read_files(read(document).input) == [b"a"]


def test_files_in_json_are_base64() -> None:
    texts = [base64.b64encode(file).decode() for file in (b"\xff\x00", b"")]
    assert read_files(InputTensor("image", "BYTES", (2,), texts)) == [b"\xff\x00", b""]


def test_binary_pixels_are_not_copied() -> None:
    body = bytes(12)
    pixels = read_pixels(InputTensor("images", "UINT8", (1, 2, 2, 3), memoryview(body)))
    assert np.shares_memory(pixels, np.frombuffer(body, np.uint8))


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=1, max_dims=3, min_side=0),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    ),
    hnp.arrays(np.int64, hnp.array_shapes(min_dims=1, max_dims=2, min_side=0)),
    st.lists(st.text(max_size=5), max_size=3),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_tritonclient_reads_every_answer(
    floats: NDArray[np.float32],
    integers: NDArray[np.int64],
    texts: list[str],
    binary: tuple[bool, bool, bool],
) -> None:
    values: tuple[NDArray[Any] | list[str], ...] = (floats, integers, texts)
    datatypes: list[Datatype] = ["FP32", "INT64", "BYTES"]
    specs = [TensorSpec(datatype.lower(), datatype, (-1,)) for datatype in datatypes]
    tensors = [OutputTensor(spec, value) for spec, value in zip(specs, values, strict=True)]
    chosen = {spec.name: flag for spec, flag in zip(specs, binary, strict=True)}
    body, json_length = write_infer_response({"model_name": "m", "id": "7"}, tensors, chosen)
    result = InferResult.from_response_body(body, header_length=json_length)
    assert (json_length is not None) == any(binary)
    assert result.get_response()["id"] == "7"
    np.testing.assert_array_equal(result.as_numpy("fp32"), floats)
    np.testing.assert_array_equal(result.as_numpy("int64"), integers)
    answered = result.as_numpy("bytes").tolist()
    assert [text if isinstance(text, str) else text.decode() for text in answered] == texts


def test_an_answer_has_the_asked_tensors_in_the_asked_order() -> None:
    tensors = [
        OutputTensor(OUTPUTS[0], np.full((1, 1, 4), 0.1, np.float32)),
        OutputTensor(OUTPUTS[1], ["é"]),
    ]
    body, json_length = write_infer_response({}, tensors, {"errors": False, "boxes": False})
    assert json_length is None
    assert orjson.loads(body)["outputs"] == [
        {"name": "errors", "datatype": "BYTES", "shape": [1], "data": ["é"]},
        # Not 0.10000000149011612.
        {"name": "boxes", "datatype": "FP32", "shape": [1, 1, 4], "data": [0.1] * 4},
    ]


def test_what_a_request_chooses_is_read() -> None:
    outputs = [InferRequestedOutput("errors", binary_data=False), InferRequestedOutput("boxes")]
    values = np.array([b"x"], object)
    request = read(
        *sent("image", "BYTES", values, True, request_id="42", outputs=outputs,
              custom_parameters={"conf": 0.5})
    )  # fmt: skip
    assert request.id == "42"
    assert request.parameters == {"conf": 0.5}
    assert request.outputs == {"errors": False, "boxes": True}
    assert list(request.outputs) == ["errors", "boxes"]


def test_without_a_choice_all_is_answered_in_the_way_of_the_request() -> None:
    values = np.array([b"x"], object)
    assert read(*sent("image", "BYTES", values, True)).outputs == {"boxes": True, "errors": True}
    body, json_length = request_with()
    assert read(body, json_length).outputs == {"boxes": False, "errors": False}
    one = {"name": "boxes", "parameters": {"binary_data": False}}
    head = {"inputs": [{"name": "image", "shape": [0], "datatype": "BYTES", "data": []}]}
    both = {"parameters": {"binary_data_output": True}, "outputs": [one, {"name": "errors"}]}
    request = read(orjson.dumps(head | both))
    assert request.outputs == {"boxes": False, "errors": True}
    assert request.parameters == {}


def element(length: int, content: bytes = b"") -> bytes:
    return struct.pack("<I", length) + content


HOSTILE: dict[str, tuple[tuple[bytes, str | None], str]] = {
    "no body": ((b"", None), "not valid JSON"),
    "no json": ((b"\xff\xfe", None), "not valid JSON: .*Inference-Header"),
    "two documents": ((b"{}{}", None), "not valid JSON"),
    "deep": ((b"[" * 100_000, None), "not valid JSON"),
    "no utf-8": ((b'{"id": "\xff"}', None), "not valid JSON"),
    "nan": ((b'{"a": NaN}', None), "not valid JSON"),
    "a list": ((b"[]", None), "must be an object"),
    "many values": ((b"[" + b"1," * (JSON_LIMITS[b","][0] + 1), None), "1500000 values"),
    "many lists": ((b"[" * (JSON_LIMITS[b"["][0] + 1), None), "500000 lists"),
    "many names": ((b'"":' * (JSON_LIMITS[b":"][0] + 1), None), "10000 names"),
    "length of text": ((b"{}", "two"), "'two', no length"),
    "negative length": ((b"{}", "-1"), "'-1', no length"),
    "endless length": ((b"{}", "9" * 5000), "no length"),
    "length over the body": ((b"{}", "3"), "is 3; the body has 2 bytes"),
    "length in the JSON": ((request_with()[0], "5"), "not valid JSON"),
    "no inputs": ((b"{}", None), "one tensor, not None"),
    "two inputs": ((b'{"inputs": [{}, {}]}', None), "not 2 of them"),
    "input of text": ((b'{"inputs": ["image"]}', None), "one tensor"),
    "no name": (request_with(name=None), "name of the input must be a text, not None"),
    "no datatype": (request_with(datatype=8), "datatype of input 'image' must be a text, not 8"),
    "no shape": (request_with(shape=None), "list of integers"),
    "negative size": (request_with(shape=[-1]), "list of integers from 0 on"),
    "size of text": (request_with(shape=["2"]), "list of integers"),
    "size of true": (request_with(shape=[True]), "list of integers"),
    "fraction": (request_with(shape=[2.0]), "list of integers"),
    "size over 64 bits": (request_with(shape=[2**64]), "list of integers"),
    "both ways": (request_with(data=["YQ=="]), "both data and binary_data_size"),
    "neither way": (request_with(parameters={}), "10 bytes follow the JSON, and no binary"),
    "nothing": ((b'{"inputs": [{"name": "a", "shape": [], "datatype": "BYTES"}]}', None), "a list"),
    "wrong size": (request_with(parameters={"binary_data_size": 9}), "is 9; 10 bytes follow"),
    "size is true": (request_with(parameters={"binary_data_size": True}), "is True; 10 bytes"),
    "shared memory": (request_with(parameters={"shared_memory_region": "r"}), "shared_memory"),
    "parameters of text": (request_with(parameters="x"), "parameters of input 'image' must be"),
    "id of number": ((b'{"id": 7}', None), "id must be a text, not 7"),
    "endless id": ((b'{"id": "' + b"x" * 2000 + b'"}', None), "id has 2000 characters"),
    "request parameters": ((b'{"parameters": []}', None), "parameters of the request must be"),
    "flag of text": ((b'{"parameters": {"binary_data_output": "yes"}}', None), "true or false"),
}


@pytest.mark.parametrize(("message", "reason"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_message_is_refused(message: tuple[bytes, str | None], reason: str) -> None:
    with pytest.raises(MalformedRequest, match=reason):
        read(*message)


OUTPUT_FAULTS: dict[str, tuple[Any, str]] = {
    "unknown": ([{"name": "masks"}], "unknown output 'masks'; the model has boxes, errors"),
    "list as name": ([{"name": ["boxes"]}], "unknown output a list"),
    "twice": ([{"name": "boxes"}, {"name": "boxes"}], "more than once"),
    "texts": (["boxes"], "must be a list like"),
    "object": ({"name": "boxes"}, "must be a list like"),
    "classification": ([{"name": "boxes", "parameters": {"classification": 3}}], "classification"),
    "flag": ([{"name": "boxes", "parameters": {"binary_data": 1}}], "true or false, not 1"),
}


@pytest.mark.parametrize(("outputs", "reason"), OUTPUT_FAULTS.values(), ids=OUTPUT_FAULTS)
def test_outputs_that_are_not_there_are_refused(outputs: Any, reason: str) -> None:
    head = {"inputs": [{"name": "image", "shape": [0], "datatype": "BYTES", "data": []}]}
    with pytest.raises(MalformedRequest, match=reason):
        read(orjson.dumps(head | {"outputs": outputs}))


FILE_FAULTS: dict[str, tuple[int, list[Any] | bytes, str]] = {
    "cut in a length": (1, b"\x01\x00", "ends before its element 0; its shape says 1"),
    "one too few": (2, element(1, b"a"), "ends before its element 1; its shape says 2"),
    "length that lies": (1, element(2**32 - 1, b"a"), "has 4294967295 bytes; 1 are left"),
    "one too many": (1, element(0) + element(3, b"abc"), "7 bytes follow the 1 elements"),
    "far too few": (2**63, element(0), "ends before its element 1"),
    "fewer texts": (2, ["YQ=="], "has 1 elements under data; its shape says 2"),
    "number": (1, [7], "element 0 of input 'image' must be a base64 text, not 7"),
    "no base64": (2, ["YQ==", "?"], "element 1 of input 'image' is not valid base64"),
    "no ascii": (1, ["é"], "not valid base64"),
    "url": (1, ["http://a/b.jpg"], "element 0 of input 'image' is a URL; URLs are not fetched"),
}


@pytest.mark.parametrize(("count", "content", "reason"), FILE_FAULTS.values(), ids=FILE_FAULTS)
def test_files_that_are_not_as_they_say_are_refused(
    count: int, content: list[Any] | bytes, reason: str
) -> None:
    held = memoryview(content) if isinstance(content, bytes) else content
    with pytest.raises(MalformedRequest, match=reason):
        read_files(InputTensor("image", "BYTES", (count,), held))


PIXEL_FAULTS: dict[str, tuple[tuple[int, ...], list[Any] | bytes, str]] = {
    "too few bytes": ((1, 2, 2, 3), bytes(11), r"11 elements; its shape \[1, 2, 2, 3\] says 12"),
    "too many bytes": ((1, 1, 1, 3), bytes(4), "4 elements"),
    "overflow": ((2**62, 4, 1, 3), b"", "has 0 elements; its shape"),
    "huge": ((2**63, 2**63, 2**63, 3), bytes(3), "has 3 elements"),
    "too few numbers": ((1, 1, 1, 3), [1, 2], "has 2 elements"),
    "over 255": ((1, 1, 1, 3), [1, 2, 256], "not from 0 to 255"),
    "under 0": ((1, 1, 1, 3), [1, 2, -1], "not from 0 to 255"),
    "fraction": ((1, 1, 1, 3), [1, 2, 3.0], "not integers"),
    "true": ((1, 1, 1, 3), [1, 2, True], "not integers"),
    "texts": ((1, 1, 1, 3), ["1", "2", "3"], "not integers"),
    "ragged": ((1, 1, 2, 3), [[[[1, 2, 3], [1, 2]]]], "not nested"),
    "too deep": ((1, 1, 1, 3), [[[[[1, 2, 3]]]]], "not nested"),
    "not deep enough": ((1, 1, 1, 3), [[1, 2, 3]], "not nested"),
    "half nested": ((1, 1, 2, 3), [[[1, 2, 3], 4, 5, 6]], "not nested"),
    "flat, then nested": ((1, 1, 1, 3), [1, 2, [3]], "not integers"),
    "other first size": ((2, 1, 1, 3), [[[[1, 2, 3]]]], "not nested"),
}


@pytest.mark.parametrize(("shape", "content", "reason"), PIXEL_FAULTS.values(), ids=PIXEL_FAULTS)
def test_pixels_that_are_not_as_they_say_are_refused(
    shape: tuple[int, ...], content: list[Any] | bytes, reason: str
) -> None:
    held = memoryview(content) if isinstance(content, bytes) else content
    with pytest.raises(MalformedRequest, match=reason):
        read_pixels(InputTensor("images", "UINT8", shape, held))


SPEC_FAULTS: dict[str, tuple[InputTensor, str]] = {
    "name": (InputTensor("image", "UINT8", (1,), []), "unknown input 'image'; .* 'images'"),
    "datatype": (InputTensor("images", "FP32", (1,), []), "is 'FP32'; the model takes UINT8"),
    "too flat": (InputTensor("images", "UINT8", (1,), []), r"shape \[1\]; .* \[-1, -1, -1, 3\]"),
    "channels": (InputTensor("images", "UINT8", (1, 2, 2, 4), []), r"\[1, 2, 2, 4\]"),
    "endless": (InputTensor("images", "UINT8", (1,) * 1000, []), r"\[(1, ){8}\.\.\.\]"),
}


@pytest.mark.parametrize(("tensor", "reason"), SPEC_FAULTS.values(), ids=SPEC_FAULTS)
def test_a_tensor_that_the_model_does_not_take_is_refused(tensor: InputTensor, reason: str) -> None:
    with pytest.raises(MalformedRequest, match=reason):
        check_against(tensor, PIXELS)


@given(st.binary(max_size=200), st.none() | st.integers(0, 250).map(str))
def test_no_bytes_do_worse_than_a_refusal(body: bytes, json_length: str | None) -> None:
    with pytest.raises(MalformedRequest):
        read(body, json_length)


@given(
    st.lists(st.integers(0, 2**40), min_size=4, max_size=4),
    st.binary(max_size=40) | st.lists(st.integers() | st.text() | st.none()),
)
def test_no_shape_does_worse_than_a_refusal(shape: list[int], content: bytes | list[Any]) -> None:
    held = memoryview(content) if isinstance(content, bytes) else content
    try:
        pixels = read_pixels(InputTensor("images", "UINT8", tuple(shape), held))
    except MalformedRequest:
        return
    assert list(pixels.shape) == shape


@given(st.data())
def test_a_damaged_message_is_read_or_refused(data: st.DataObject) -> None:
    body, json_length = request_with()
    damaged = bytearray(body)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        request = read(bytes(damaged), json_length)
        check_against(request.input, FILES)
        files = read_files(request.input)
    except MalformedRequest:
        return
    assert len(files) == request.input.shape[0]


MEASURE = """
import sys
from pathlib import Path
from server.api.kserve.messages import parsed_bytes, read_infer_request
from server.api.kserve.tensors import TensorSpec, read_files

def resident_bytes(line):
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(each.split()[1]) * 1024 for each in status if each.startswith(line))

body, json_length = Path(sys.argv[1]).read_bytes(), sys.argv[2] or None
said = parsed_bytes(body, json_length)
Path("/proc/self/clear_refs").write_text("5")  # the highest is the present
before = resident_bytes("VmRSS")
files = read_files(read_infer_request(body, json_length, [TensorSpec("a", "BYTES", (-1,))]).input)
print(said, resident_bytes("VmHWM") - before)
"""
FILE = base64.b64encode(bytes(3_000_000))
NAMES = ",".join(f'"{number}":[]' for number in range(9_990)).encode()
GREEDY = {
    "numbers": b"[" + b"12345678901," * 400_000 + b"0]",
    "texts": b"[" + b'"ab",' * 400_000 + b"0]",
    "lists": b"[" + b"[]," * 400_000 + b"0]",
    "objects": b"[" + b"{}," * 400_000 + b"0]",
    "names": b"{" + NAMES + b"}",
    "wide text": b'"\\ud83d\\udd2c' + b"a" * 12_000_000 + b'"',
}


def resident(tmp_path: Path, repo_dir: Path, body: bytes, json_length: str = "") -> tuple[int, int]:
    """Bytes that reading says it takes, and what a process of its own then took."""
    (tmp_path / "body").write_bytes(body)
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "body"), json_length]
    done = subprocess.run(command, cwd=repo_dir, capture_output=True, text=True, check=True)
    said, took = map(int, done.stdout.split())
    return said, took


@pytest.mark.parametrize("value", GREEDY.values(), ids=GREEDY)
def test_reading_takes_no_more_memory_than_it_says(
    tmp_path: Path, repo_dir: Path, value: bytes
) -> None:
    head = b'{"inputs":[{"name":"image","shape":[1],"datatype":"BYTES","data":["' + FILE + b'"]}],'
    said, took = resident(tmp_path, repo_dir, head + b'"more":' + value + b"}")
    assert 2 * len(FILE) <= took <= said + 2_000_000


def test_binary_files_take_no_more_memory_than_is_said(tmp_path: Path, repo_dir: Path) -> None:
    size = 8_000_000
    said, took = resident(
        tmp_path, repo_dir, *request_with(element(size, bytes(size)) + element(0))
    )
    assert size <= took <= said + 2_000_000
