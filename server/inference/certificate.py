"""What is stored of an artifact's verification: how far its results are from its source's."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Accuracy(BaseModel):
    """Average precision of source and artifact on the same labelled images.

    Attributes:
        data: of what data set and split, in words.
        images, objects: how many there were.
        source_map50_95, source_map50: of the source, between ultralytics' own letterbox and NMS;
            COCO average precision in 0..1.
        artifact_map50_95, artifact_map50: of the artifact, through the serving code.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str
    images: int
    objects: int
    source_map50_95: float
    source_map50: float
    artifact_map50_95: float
    artifact_map50: float

    @property
    def loss(self) -> float:
        """What the artifact's mAP50-95 is short of the source's; negative where it is better."""
        return self.source_map50_95 - self.artifact_map50_95


class Latency(BaseModel):
    """How long one image takes on a CPU, measured when the artifact was made.

    Attributes:
        cpu: the processor's name.
        threads: of one run.
        input_hw: the shape that was run, (height, width) in pixels, in a batch of one.
        median_ms: of the artifact.
        fp32_median_ms: of the same network in float32, run in turns with the artifact.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpu: str
    threads: int
    input_hw: tuple[int, int]
    median_ms: float
    fp32_median_ms: float


Precision = Literal["fp32", "fp16", "int8"]

# What became of verification:
# - draft: it is still to come; never served.
# - equal: detections are the source's, as `Certificate.detections_agreement` says.
# - within_gate: a reduced precision that keeps mAP50-95 to within its tolerance.
# - loss_accepted: a reduced precision whose loss is beyond its tolerance or was not measured, which
#   whoever exported it accepted.
Verdict = Literal["draft", "equal", "within_gate", "loss_accepted"]


class Certificate(BaseModel):
    """How far the artifact's answers are from its source's.

    Measured on a CPU, which runs a graph in float16 in float32: so every value of it was rounded to
    float16 there, as a GPU does.

    Attributes:
        created: ISO 8601 date.
        verdict: what verification came to; see `Verdict`.
        tensor_max_abs_diff_boxes_px, tensor_max_abs_diff_scores: largest difference of
            the raw outputs, boxes in input pixels; in a reduced precision of candidates that
            score at least 0.05, each held against the nearest one of the source by box and score.
        tensor_p90_abs_diff_boxes_px, tensor_p90_abs_diff_scores: what nine in ten of an image's
            candidates stay within.
        detections_compared: how many, after NMS, through the serving code.
        detections_agreement: share of them, in 0..1, that source and artifact both have: of one
            class, with an IoU of at least 0.5; 1 says same count and classes on every image, in
            the order of their scores. In float32, where an overlap or a score lies within
            rounding of its threshold, either decision counts as the same.
        detections_max_box_diff_px, detections_max_score_diff: largest difference of
            detections that both have, boxes in original pixels.
        batch_sizes, buckets: what was run; buckets are (height, width).
        images: what was compared, in words.
        accuracy: on labelled images; None when there were none.
        accuracy_gate: the largest loss of mAP50-95 that this precision may have; None in float32,
            where detections are equal.
        calibration: the images that int8 took its ranges from, in words; else None.
        latency: on the CPU of the machine that exported.
        file_bytes: size of the artifact.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    created: str
    verdict: Verdict
    tensor_max_abs_diff_boxes_px: float
    tensor_max_abs_diff_scores: float
    tensor_p90_abs_diff_boxes_px: float
    tensor_p90_abs_diff_scores: float
    detections_compared: int
    detections_agreement: float
    detections_max_box_diff_px: float
    detections_max_score_diff: float
    batch_sizes: tuple[int, ...]
    buckets: tuple[tuple[int, int], ...]
    images: str
    accuracy: Accuracy | None = None
    accuracy_gate: float | None = None
    calibration: str | None = None
    latency: Latency | None = None
    file_bytes: int = 0
