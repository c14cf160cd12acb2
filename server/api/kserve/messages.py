"""The messages of an infer call: a request's bytes to its one tensor, tensors to an answer's bytes.

    {"id": ..., "parameters": {...}, "inputs": [{...}], "outputs": [{...}]}<binary data>

Source:
    KServe, Open Inference Protocol v2, REST, with the Binary Tensor Data Extension.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from server.api.body import PIECE_BYTES, Buffer, json_copies, load_json
from server.api.kserve.tensors import InputTensor, OutputTensor, TensorSpec
from server.api.parameters import truncate_repr
from server.errors import MalformedRequest

# The length of the JSON, where binary data follows.
JSON_LENGTH_HEADER = "Inference-Header-Content-Length"
# What the JSON may hold, counted before it is parsed, which takes Python's lock for all of it.
# An image of 640 x 640 pixels has 1.2 million values, nested in 0.4 million lists. Larger
# tensors are sent as binary data.
JSON_LIMITS = {b",": (1_500_000, "values"), b"[": (500_000, "lists"), b":": (10_000, "names")}
# Measured with orjson 3.13, beside the characters of texts: a value, in its tree and as an object;
# and a name in an object, which takes more when it is the object's millionth.
JSON_VALUE_BYTES = 96
JSON_NAME_BYTES = 200
MAX_ID_CHARACTERS = 1_000

Json = dict[str, Any]
_LENGTH = re.compile(r"[0-9]{1,15}")


@dataclass(frozen=True, slots=True)
class InferRequest:
    """What an infer call asks.

    Attributes:
        id: sent back with the answer; None where the request has none.
        parameters: of the model; those of the protocol are taken out.
        input: the one tensor.
        outputs: name of each tensor to answer, in this order, and whether as binary data.
    """

    id: str | None
    parameters: Json
    input: InputTensor
    outputs: dict[str, bool]


def parsed_bytes(body: Buffer, json_length: str | None) -> int:
    """Bytes that `read_infer_request` and what it reads take beside the body, at most.

    Raises:
        MalformedRequest: the JSON's length is none, or the JSON has more than `JSON_LIMITS`.
    """
    end = _json_end(body, json_length)
    # In pieces, between which other threads get Python's lock.
    pieces = [(at, min(at + PIECE_BYTES, end)) for at in range(0, end, PIECE_BYTES)]
    counts = {mark: sum(body.count(mark, *piece) for piece in pieces) for mark in JSON_LIMITS}
    for mark, (limit, what) in JSON_LIMITS.items():
        if counts[mark] > limit:
            raise MalformedRequest(
                f"the JSON has more than {limit} {what}; large tensors are sent as binary data"
            )
    values = (1 + counts[b","]) * JSON_VALUE_BYTES + counts[b":"] * JSON_NAME_BYTES
    texts = end * json_copies(body if end == len(body) else body[:end])
    return values + texts + len(body) - end


def read_infer_request(
    body: Buffer, json_length: str | None, outputs: Sequence[TensorSpec]
) -> InferRequest:
    """Reads the body of an infer call with one input.

    Args:
        body: all of it; not more than `parsed_bytes` takes.
        json_length: the value of `JSON_LENGTH_HEADER`, if it came.
        outputs: what the model can answer; all of it where the request chooses nothing.

    Raises:
        MalformedRequest: anything about it is not as the protocol says, or it asks for what is
            not served.
    """
    end = _json_end(body, json_length)
    try:
        document = load_json(body, end)
    except orjson.JSONDecodeError as error:
        hint = "" if json_length else f" ({JSON_LENGTH_HEADER} says where binary data begins)"
        raise MalformedRequest(f"the body is not valid JSON: {error}{hint}") from None
    if not isinstance(document, dict):
        raise MalformedRequest('the JSON must be an object like {"inputs": [...]}')
    parameters = _object(document, "parameters", "the request")
    all_binary = _flag(parameters, "binary_data_output", "the request")
    parameters.pop("binary_data_output", None)
    return InferRequest(
        id=_id(document),
        parameters=parameters,
        input=_input(document, memoryview(body)[end:]),
        outputs=_outputs(document, outputs, all_binary),
    )


def write_infer_response(
    head: Json, outputs: Sequence[OutputTensor], binary: dict[str, bool]
) -> tuple[bytes, int | None]:
    """The body of an answer.

    Args:
        head: its fields before `outputs`.
        outputs: the tensors, by name in `binary`.
        binary: as `InferRequest.outputs`.

    Returns:
        The body; and the length of its JSON where binary data follows, else None.
    """
    described: list[Json] = []
    blobs: list[bytes] = []
    by_name = {output.spec.name: output for output in outputs}
    for name, as_binary in binary.items():
        tensor = by_name[name]
        if as_binary:
            blob = tensor.as_binary()
            blobs.append(blob)
            content: Json = {"parameters": {"binary_data_size": len(blob)}}
        else:
            content = {"data": tensor.as_json()}
        described.append(tensor.described() | content)
    document = orjson.dumps(head | {"outputs": described}, option=orjson.OPT_SERIALIZE_NUMPY)
    return b"".join((document, *blobs)), len(document) if blobs else None


def _json_end(body: Buffer, json_length: str | None) -> int:
    if json_length is None:
        return len(body)
    if not _LENGTH.fullmatch(json_length):
        raise MalformedRequest(f"{JSON_LENGTH_HEADER} is {truncate_repr(json_length)}, no length")
    if int(json_length) > len(body):
        raise MalformedRequest(
            f"{JSON_LENGTH_HEADER} is {int(json_length)}; the body has {len(body)} bytes"
        )
    return int(json_length)


def _id(document: Json) -> str | None:
    sent = document.get("id")
    if sent is not None and not isinstance(sent, str):
        raise MalformedRequest(f"id must be a text, not {truncate_repr(sent)}")
    if sent and len(sent) > MAX_ID_CHARACTERS:
        raise MalformedRequest(
            f"id has {len(sent)} characters; at most {MAX_ID_CHARACTERS} are sent back"
        )
    return sent


def _input(document: Json, binary: memoryview) -> InputTensor:
    inputs = document.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        came = f"{len(inputs)} of them" if isinstance(inputs, list) else truncate_repr(inputs)
        raise MalformedRequest(f"inputs must be a list of one tensor, not {came}")
    (tensor,) = inputs
    name, datatype, shape = tensor.get("name"), tensor.get("datatype"), tensor.get("shape")
    if not isinstance(name, str):
        raise MalformedRequest(f"the name of the input must be a text, not {truncate_repr(name)}")
    where = f"input {truncate_repr(name)}"
    if not isinstance(datatype, str):
        raise MalformedRequest(
            f"the datatype of {where} must be a text, not {truncate_repr(datatype)}"
        )
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise MalformedRequest(f"the shape of {where} must be a list of integers from 0 on")
    parameters = _object(tensor, "parameters", where)
    _only(parameters, ("binary_data_size",), where)
    return InputTensor(name, datatype, tuple(shape), _content(tensor, parameters, binary, where))


def _content(
    tensor: Json, parameters: Json, binary: memoryview, where: str
) -> list[Any] | memoryview:
    if "binary_data_size" in parameters:
        size = parameters["binary_data_size"]
        if "data" in tensor:
            raise MalformedRequest(f"{where} has both data and binary_data_size")
        if type(size) is not int or size != len(binary):
            raise MalformedRequest(
                f"binary_data_size of {where} is {truncate_repr(size)}; {len(binary)} bytes "
                "follow the JSON"
            )
        return binary
    if len(binary):
        raise MalformedRequest(f"{len(binary)} bytes follow the JSON, and no binary_data_size")
    data = tensor.get("data")
    if not isinstance(data, list):
        raise MalformedRequest(f"{where} needs its elements as a list under data, or as binary")
    return data


def _outputs(document: Json, specs: Sequence[TensorSpec], all_binary: bool) -> dict[str, bool]:
    known = [spec.name for spec in specs]
    requested = document.get("outputs")
    if requested is None or requested == []:
        return dict.fromkeys(known, all_binary)
    if not isinstance(requested, list) or not all(isinstance(output, dict) for output in requested):
        raise MalformedRequest('outputs must be a list like [{"name": "..."}]')
    chosen: dict[str, bool] = {}
    for output in requested:
        name = output.get("name")
        if name not in known:
            raise MalformedRequest(
                f"unknown output {truncate_repr(name)}; the model has {', '.join(known)}"
            )
        if name in chosen:
            raise MalformedRequest(f"output {name!r} is asked for more than once")
        parameters = _object(output, "parameters", f"output {name!r}")
        _only(parameters, ("binary_data",), f"output {name!r}")
        chosen[name] = _flag(parameters, "binary_data", f"output {name!r}", all_binary)
    return chosen


def _object(holder: Json, name: str, where: str) -> Json:
    value = holder.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise MalformedRequest(f"{name} of {where} must be an object, not {truncate_repr(value)}")
    return value


def _only(parameters: Json, known: Sequence[str], where: str) -> None:
    for name in parameters:
        if name not in known:
            raise MalformedRequest(
                f"{where} has the parameter {truncate_repr(name)}; served is {', '.join(known)}"
            )


def _flag(parameters: Json, name: str, where: str, default: bool = False) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise MalformedRequest(
            f"{name} of {where} must be true or false, not {truncate_repr(value)}"
        )
    return value
