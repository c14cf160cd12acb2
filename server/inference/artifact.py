"""The artifact: one ONNX file that carries its own description.

The description is read from the file's outermost protobuf fields, so that neither the onnx
package nor a session is needed, and a wrong file is refused in milliseconds.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from server.errors import ArtifactInvalid
from server.inference.certificate import Certificate, Precision

METADATA_KEY = "yolov8_fla"
SCHEMA_VERSION: Final = 2

_GRAPH_FIELD, _METADATA_FIELD = 7, 14  # of ModelProto in onnx.proto
_NODE_FIELD = 1  # of GraphProto
_OPERATOR_FIELD = 4  # of NodeProto
_Sha256 = Field(pattern="^[0-9a-f]{64}$")


class Metadata(BaseModel):
    """The JSON value under `METADATA_KEY`.

    Attributes:
        schema_version: `SCHEMA_VERSION`.
        name: the model's name, as answers show it.
        architecture: such as "yolov8n-fla".
        class_names: the name of each class id.
        input_hw: export size, (height, width) in pixels.
        stride: input sizes are multiples of it, in pixels.
        buckets: input shapes that are served, (height, width) in pixels, <= input_hw.
        static: the graph takes only `input_hw`.
        max_candidates: most rows per image, K.
        strides: of the detection levels, in pixels.
        precision: of the weights of convolutions, and of their arithmetic.
        opset: of the standard operators.
        source_sha256: of the checkpoint file.
        graph_sha256: of the graph, see `graph_sha256`.
        tools: version by package that made the file.
        certificate: how it was verified.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[2]
    name: str = Field(min_length=1)
    architecture: str
    class_names: tuple[str, ...] = Field(min_length=1)
    input_hw: tuple[int, int]
    stride: int = Field(ge=1)
    buckets: tuple[tuple[int, int], ...] = Field(min_length=1)
    static: bool
    max_candidates: int = Field(ge=1)
    strides: tuple[int, ...] = Field(min_length=1)
    precision: Precision
    opset: int
    source_sha256: str = _Sha256
    graph_sha256: str = _Sha256
    tools: dict[str, str]
    certificate: Certificate

    @model_validator(mode="after")
    def _shapes_fit(self) -> Self:
        if any(each < 1 or self.stride % each for each in self.strides):
            raise ValueError(f"strides {self.strides} do not divide stride {self.stride}")
        for height, width in (self.input_hw, *self.buckets):
            if height < 1 or width < 1 or height % self.stride or width % self.stride:
                raise ValueError(f"{height}x{width} is no multiple of stride {self.stride}")
            if height > self.input_hw[0] or width > self.input_hw[1]:
                raise ValueError(f"bucket {height}x{width} is larger than input {self.input_hw}")
        if self.static and self.buckets != (self.input_hw,):
            raise ValueError(f"a static model has the one bucket {self.input_hw}")
        return self

    @model_validator(mode="after")
    def _verdict_fits(self) -> Self:
        verdict = self.certificate.verdict
        if verdict != "draft" and (verdict == "equal") != (self.precision == "fp32"):
            raise ValueError(f"{self.precision} does not go with the verdict {verdict!r}")
        return self

    def anchors(self, input_hw: tuple[int, int]) -> int:
        """How many anchor points an input of (height, width) pixels has, on all levels."""
        return sum((input_hw[0] // each) * (input_hw[1] // each) for each in self.strides)


@dataclass(frozen=True, slots=True)
class Artifact:
    """A model file whose description was read and checked.

    Attributes:
        path: the ONNX file.
        metadata: its description.
        version: first 12 hex digits of the file's sha256.
    """

    path: Path
    metadata: Metadata
    version: str


def load_artifact(path: Path) -> Artifact:
    """Reads, checks and names a model file, which is opened once: it may be replaced meanwhile.

    Raises:
        ArtifactInvalid: as `read_metadata` does, or its certificate says that it was never
            verified.
    """
    data = _content(path)
    metadata = _metadata_of(path, data)
    version = _version_of(data)
    if metadata.certificate.verdict == "draft":
        raise ArtifactInvalid(f"{path}: it was never verified against its source: a draft")
    return Artifact(path, metadata, version)


def refuse_if_replaced(artifact: Artifact) -> None:
    """Makes sure that what was loaded from an artifact's path is what was checked before.

    Raises:
        ArtifactInvalid: another file is there now, or none.
    """
    version = _version_of(_content(artifact.path))
    if version != artifact.version:
        raise ArtifactInvalid(
            f"{artifact.path}: the file was replaced while it was loaded: it is {version}, and was "
            f"{artifact.version}; load it again"
        )


def read_metadata(path: Path) -> Metadata:
    """Reads a model file's description and checks that it belongs to the graph beside it.

    Raises:
        ArtifactInvalid: the file is missing, is no ONNX file, was not made by our export, is
            of another schema version, or its graph was changed after it was verified.
    """
    return _metadata_of(path, _content(path))


def _content(path: Path) -> bytes:
    # Not a map of it: a file that is cut off meanwhile would end the process.
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactInvalid(f"{path}: cannot be read: {error.strerror}") from None
    if not data:
        raise ArtifactInvalid(f"{path}: the file is empty")
    return data


def _version_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def _metadata_of(path: Path, data: bytes) -> Metadata:
    try:
        entries = [data[start:end] for start, end in _fields(data, _METADATA_FIELD)]
        values = {_text(entry, 1): _text(entry, 2) for entry in entries}
        digest = graph_sha256(data)
    except _NotProtobuf as error:
        if path.suffix == ".pt":
            raise ArtifactInvalid(
                f"{path}: a checkpoint, which must be exported first: "
                f"`make export ARGS='{path} -o MINE.onnx'` in a checkout, else `python -m export "
                f"{path} -o MINE.onnx` with the extra `export` installed"
            ) from None
        raise ArtifactInvalid(f"{path}: not a complete ONNX file: {error}") from None
    if METADATA_KEY not in values:
        raise ArtifactInvalid(
            f"{path}: an ONNX file, and no artifact, as it has no {METADATA_KEY!r} metadata; one "
            f"is made of ultralytics' ONNX files and checkpoints: `make export ARGS='{path} -o "
            "MINE.onnx'` in a checkout, else `python -m export` with the extra `export` installed"
        )
    try:
        metadata = Metadata.model_validate_json(values[METADATA_KEY])
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactInvalid(
            f"{path}: metadata of schema {SCHEMA_VERSION} expected: {where}: {first['msg']}"
        ) from None
    if metadata.graph_sha256 != digest:
        raise ArtifactInvalid(
            f"{path}: the graph was changed after verification: its sha256 is {digest}, "
            f"the metadata says {metadata.graph_sha256}"
        )
    return metadata


def graph_sha256(model_bytes: bytes) -> str:
    """Hashes the graph alone, so that metadata may be added beside it.

    Args:
        model_bytes: a serialised ModelProto.

    Returns:
        64 hex digits: sha256 of the payload of field 7, `ModelProto.graph`.

    Raises:
        ValueError: the bytes are not a complete ModelProto with one graph.
    """
    spans = list(_fields(model_bytes, _GRAPH_FIELD))
    if len(spans) != 1:
        raise _NotProtobuf(f"{len(spans)} graphs in it")
    with memoryview(model_bytes) as view, view[slice(*spans[0])] as graph:
        return hashlib.sha256(graph).hexdigest()


def operators(model_bytes: bytes) -> Iterator[str]:
    """The operator of each node of a model's graph, in their order, without those of subgraphs.

    Args:
        model_bytes: a serialised ModelProto.

    Raises:
        ValueError: the bytes are not a complete ModelProto.
    """
    for start, end in _fields(model_bytes, _GRAPH_FIELD):
        graph = model_bytes[start:end]
        for node in _fields(graph, _NODE_FIELD):
            yield _text(graph[slice(*node)], _OPERATOR_FIELD)


class _NotProtobuf(ValueError):
    """The bytes do not follow the protobuf wire format of a ModelProto."""


def _text(message: bytes, field: int) -> str:
    """A string field of a small message, the last one when repeated; "" when absent."""
    spans = list(_fields(message, field))
    return message[slice(*spans[-1])].decode(errors="replace") if spans else ""


def _fields(data: bytes, field_number: int) -> Iterator[tuple[int, int]]:
    """Yields (start, end) of the payload of each length-delimited field of that number."""
    position, size = 0, len(data)
    while position < size:
        key, position = _varint(data, position)
        field, wire_type = key >> 3, key & 7
        if wire_type == 0:
            _, position = _varint(data, position)
        elif wire_type in (1, 5):
            position += 8 if wire_type == 1 else 4
        elif wire_type == 2:
            length, position = _varint(data, position)
            if field == field_number and position + length <= size:
                yield position, position + length
            position += length
        else:
            raise _NotProtobuf(f"wire type {wire_type} at byte {position}")
        if position > size:
            raise _NotProtobuf(f"field {field} ends after the end of the file")


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise _NotProtobuf("a number is cut off")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise _NotProtobuf(f"a number is too long at byte {position}")
