"""What OpenAPI says of the Open Inference Protocol's routes."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from server.api.kserve.messages import JSON_LENGTH_HEADER, MAX_ID_CHARACTERS
from server.api.openapi import problem_responses

Json = dict[str, Any]
Datatype = Literal["BYTES", "FP32", "INT64", "UINT8"]


class Body(BaseModel):
    """Base of all bodies here."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ServerMetadata(Body):
    """What serves."""

    name: str
    version: str
    extensions: list[str]


class Live(Body):
    """The answer of the liveness probe."""

    live: Literal[True]


class Ready(Body):
    """The answer of the readiness probe."""

    ready: Literal[True]


class ModelReady(Body):
    """The answer of a model's readiness probe."""

    name: str
    ready: Literal[True]


class TensorMetadata(Body):
    """A tensor that a model takes or answers."""

    name: str
    datatype: Datatype
    shape: list[int] = Field(description="-1 where any size is taken.")


class ModelMetadata(Body):
    """A model: its tensors, and as parameters what else a client wants to know of it."""

    name: str
    versions: list[str]
    platform: Literal["onnx_onnxv1"]
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    parameters: Json


class AnsweredTensor(Body):
    """A tensor of an answer: its elements in one row, or how many bytes of them follow."""

    name: str
    datatype: Datatype
    shape: list[int]
    data: list[float] | list[str] | None = None
    parameters: dict[Literal["binary_data_size"], int] | None = None


class InferAnswer(Body):
    """The tensors that were asked for."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[AnsweredTensor]


class InferError(Body):
    """Why there is no answer."""

    error: str


def error_responses(*statuses: int) -> dict[int | str, Json]:
    """OpenAPI's description of error answers, in the protocol's form."""
    return problem_responses(*statuses, body=InferError, media_type="application/json")


def infer_responses() -> dict[int | str, Json]:
    """OpenAPI's description of an infer call's answers, beside its JSON."""
    answer: Json = {
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        "headers": {
            JSON_LENGTH_HEADER: {
                "description": "Bytes of the JSON, where binary data follows.",
                "required": False,
                "schema": {"type": "integer", "minimum": 1},
            }
        },
    }
    return {200: answer} | error_responses(400, 401, 404, 413, 415, 422, 500, 503, 504)


def path_parameters(model_name: str, *, versioned: bool) -> list[Json]:
    """The parts of a model's path."""
    name = {
        "name": "name",
        "in": "path",
        "required": True,
        "description": "The model: NAME, or NAME-raw for the network alone.",
        "schema": {"type": "string", "minLength": 1},
        "example": model_name,
    }
    version = {
        "name": "version",
        "in": "path",
        "required": True,
        "description": "First 12 hex digits of the artifact file's sha256.",
        "schema": {"type": "string", "minLength": 1},
    }
    return [name, version] if versioned else [name]


def infer_request() -> Json:
    """The body of an infer call, as JSON, and as JSON that binary data follows."""
    return {
        "parameters": [
            {
                "name": JSON_LENGTH_HEADER,
                "in": "header",
                "required": False,
                "description": "Bytes of the JSON, where binary data follows.",
                "schema": {"type": "integer", "minimum": 1},
            }
        ],
        "requestBody": {
            "required": True,
            "description": "The media type is not looked at: the header decides.",
            "content": {
                "application/json": {"schema": _REQUEST, "example": _EXAMPLE},
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            },
        },
    }


_INPUT: Json = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string", "enum": ["image", "images"]},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "datatype": {"type": "string", "enum": ["BYTES", "UINT8"]},
        "data": {
            "type": "array",
            "description": "BYTES as base64 texts; UINT8 flat, or nested as the shape.",
        },
        "parameters": {
            "type": "object",
            "properties": {"binary_data_size": {"type": "integer", "minimum": 0}},
            "additionalProperties": False,
        },
    },
}
_OUTPUT: Json = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string"},
        "parameters": {
            "type": "object",
            "properties": {"binary_data": {"type": "boolean", "default": False}},
            "additionalProperties": False,
        },
    },
}
_REQUEST: Json = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string", "maxLength": MAX_ID_CHARACTERS},
        "parameters": {
            "type": "object",
            "description": "Of NAME, as in POST /detect: conf, iou, max_det, classes, "
            "agnostic_nms.",
            "properties": {"binary_data_output": {"type": "boolean", "default": False}},
        },
        "inputs": {"type": "array", "minItems": 1, "maxItems": 1, "items": _INPUT},
        "outputs": {"type": "array", "items": _OUTPUT},
    },
}
_BLACK_PIXEL_PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mNgAAAAAgAB5Sfe/AAAAABJRU5ErkJggg=="
)
_EXAMPLE: Json = {
    "id": "42",
    "parameters": {"conf": 0.25},
    "inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [_BLACK_PIXEL_PNG]}],
    "outputs": [{"name": "boxes"}, {"name": "counts"}],
}
