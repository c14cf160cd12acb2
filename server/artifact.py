"""The artifact: one ONNX file that carries its own description."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

METADATA_KEY = "yolov8_fla"
SCHEMA_VERSION = 1


class Certificate(BaseModel):
    """How far the artifact's answers are from the source checkpoint's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    created: str
    tensor_max_abs_diff_boxes_px: float
    tensor_max_abs_diff_scores: float
    detections_compared: int
    detections_equal: bool
    detections_max_box_diff_px: float
    detections_max_score_diff: float
    batch_sizes: tuple[int, ...]
    buckets: tuple[tuple[int, int], ...]
    images: str


class Metadata(BaseModel):
    """The JSON value under `METADATA_KEY`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int
    name: str
    architecture: str
    class_names: tuple[str, ...]
    input_hw: tuple[int, int]
    stride: int
    buckets: tuple[tuple[int, int], ...]
    static: bool
    max_candidates: int
    strides: tuple[int, ...]
    precision: Literal["fp32", "fp16", "int8"]
    opset: int
    source_sha256: str
    graph_sha256: str
    tools: dict[str, str]
    certificate: Certificate


@dataclass(frozen=True, slots=True)
class Artifact:
    """A checked model file.

    Attributes:
        path: the ONNX file.
        metadata: its description.
        version: first 12 hex digits of the file's sha256.
    """

    path: Path
    metadata: Metadata
    version: str


def graph_sha256(model_bytes: bytes) -> str:
    """The sha256 of the graph inside a serialised ModelProto."""
    raise NotImplementedError


def file_version(path: Path) -> str:
    """First 12 hex digits of the file's sha256."""
    raise NotImplementedError


def read_metadata(path: Path) -> Metadata:
    """Reads and checks the metadata without the onnx package."""
    raise NotImplementedError


def load_artifact(path: Path) -> Artifact:
    """Reads, checks and names a model file."""
    raise NotImplementedError
