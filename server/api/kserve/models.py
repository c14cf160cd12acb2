"""The two models that an artifact is in the Open Inference Protocol, and the tensors they answer.

`NAME` takes image files and answers detections; `NAME-raw` is the network alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from server.api.kserve.tensors import InputTensor, OutputTensor, TensorSpec, check_against
from server.api.parameters import truncate_repr
from server.api.responses import placed_boxes
from server.errors import BadInput, MalformedRequest, NoImage, NotFound
from server.inference.artifact import Artifact, Metadata
from server.serving.pipeline import Found

RAW_SUFFIX = "-raw"
UNREADABLE = -1  # the count of an image that can't be read

FILES = TensorSpec("image", "BYTES", (-1,))
BOXES = TensorSpec("boxes", "FP32", (-1, -1, 4))
SCORES = TensorSpec("scores", "FP32", (-1, -1))
CLASS_IDS = TensorSpec("class_ids", "INT64", (-1, -1))
COUNTS = TensorSpec("counts", "INT64", (-1,))
ERRORS = TensorSpec("errors", "BYTES", (-1,))


@dataclass(frozen=True, slots=True)
class InferModel:
    """A model as the protocol shows it.

    Attributes:
        name, version: as they stand in the URL.
        raw: it takes and answers the network's own tensors.
        input: what it takes.
        outputs: what it answers.
        parameters: what else a client wants to know.
    """

    name: str
    version: str
    raw: bool
    input: TensorSpec
    outputs: tuple[TensorSpec, ...]
    parameters: dict[str, Any] = field(default_factory=dict)


def infer_models(artifact: Artifact) -> list[InferModel]:
    """The detection model and the raw model of an artifact."""
    metadata = artifact.metadata
    sizes = {*metadata.buckets}
    rows = {min(metadata.max_candidates, metadata.anchors(hw)) for hw in sizes}
    height, width = next(iter(sizes)) if len(sizes) == 1 else (-1, -1)
    pixels = TensorSpec("images", "UINT8", (-1, height, width, 3))
    candidates = TensorSpec("candidates", "FP32", (-1, rows.pop() if len(rows) == 1 else -1, 6))
    class_names = {"class_names": list(metadata.class_names)}
    buckets = {"buckets_hw": [list(hw) for hw in metadata.buckets]}
    return [
        InferModel(
            metadata.name,
            artifact.version,
            False,
            FILES,
            (BOXES, SCORES, CLASS_IDS, COUNTS, ERRORS),
            class_names,
        ),
        InferModel(
            metadata.name + RAW_SUFFIX,
            artifact.version,
            True,
            pixels,
            (candidates,),
            class_names | buckets,
        ),
    ]


def find_model(artifact: Artifact, name: str, version: str | None) -> InferModel:
    """The model of that name.

    Raises:
        NotFound: there is none, or not in that version.
    """
    models = {model.name: model for model in infer_models(artifact)}
    if name not in models:
        raise NotFound(f"no model {truncate_repr(name)}; served are {' and '.join(models)}")
    if version not in (None, artifact.version):
        raise NotFound(
            f"no version {truncate_repr(version)} of {name}; served is {artifact.version}"
        )
    return models[name]


def images_in(tensor: InputTensor, model: InferModel, metadata: Metadata) -> int:
    """How many images a tensor is said to hold, once the rest of what is said of it is right.

    Raises:
        MalformedRequest: another name, datatype or shape than the model takes.
        NoImage: none.
    """
    check_against(tensor, model.input)
    if model.raw and tensor.shape[1:3] not in metadata.buckets:
        height, width = tensor.shape[1:3]
        served = ", ".join(f"{h} x {w}" for h, w in metadata.buckets)
        raise MalformedRequest(
            f"input {tensor.name!r} holds images of {height} x {width} pixels (height x width); "
            f"the model takes {served}"
        )
    if tensor.shape[0] == 0:
        raise NoImage(f"input {tensor.name!r} holds no image")
    return tensor.shape[0]


def detection_tensors(outcomes: Sequence[Found | BadInput]) -> list[OutputTensor]:
    """What was found, filled up with zeros, class id -1, to as many rows as the fullest image has.

    Returns:
        For B images of N detections at most: `boxes` (B, N, 4) float32, xyxy in original pixels;
        `scores` (B, N) float32; `class_ids` (B, N) int64; `counts` (B,) int64, `UNREADABLE` for an
        image that can't be read; `errors`, B texts, empty where the image was read.

    Raises:
        ValueError: as `placed_boxes` does.
    """
    found = [
        outcome.detections.detections if isinstance(outcome, Found) else None
        for outcome in outcomes
    ]
    counts = [UNREADABLE if each is None else len(each.scores) for each in found]
    images, most = len(found), max(0, *counts)
    boxes = np.zeros((images, most, 4), np.float32)
    scores = np.zeros((images, most), np.float32)
    class_ids = np.full((images, most), -1, np.int64)
    for image, each in enumerate(found):
        if each is not None:
            boxes[image, : counts[image]] = placed_boxes(each)
            scores[image, : counts[image]] = each.scores
            class_ids[image, : counts[image]] = each.class_ids
    errors = [
        f"{outcome.code}: {outcome}" if isinstance(outcome, BadInput) else ""
        for outcome in outcomes
    ]
    return [
        OutputTensor(BOXES, boxes),
        OutputTensor(SCORES, scores),
        OutputTensor(CLASS_IDS, class_ids),
        OutputTensor(COUNTS, np.array(counts, np.int64)),
        OutputTensor(ERRORS, errors),
    ]
