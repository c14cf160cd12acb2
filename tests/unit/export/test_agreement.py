"""How far a reduced precision is from its source, where both can be computed by hand."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from export.verification.agreement import measure_agreement
from export.verification.images import Image
from server.inference.artifact import Artifact, load_artifact
from tests.support.artifacts import CELL, CLASS_NAMES, paint, tiny_artifact, tiny_candidates

HW = (128, 128)


@dataclass(frozen=True)
class Cells:
    """The detector that `tests.support.artifacts` describes, with a fault of its own."""

    shift_px: float = 0
    class_shift: int = 0
    architecture: str = "cells"
    class_names: tuple[str, ...] = CLASS_NAMES
    sha256: str = "0" * 64
    strides: tuple[int, ...] = (CELL,)
    fixed_hw: tuple[int, int] | None = None
    trained_imgsz: int | None = None

    def predict(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """(7, A)."""
        pixels = np.rint(x.transpose(0, 2, 3, 1) * 255).astype(np.uint8)
        (rows,) = tiny_candidates(pixels)
        centre = (rows[:, :2] + rows[:, 2:4]) / 2 + self.shift_px
        scores = np.zeros((len(rows), len(CLASS_NAMES)), np.float32)
        classes = (rows[:, 5].astype(int) + self.class_shift) % len(CLASS_NAMES)
        scores[np.arange(len(rows)), classes] = rows[:, 4]
        sides = rows[:, 2:4] - rows[:, :2]
        return np.concatenate([centre, sides, scores], axis=1).T.astype(np.float32)

    def graph(self, input_hw: tuple[int, int], *, static: bool) -> onnx.ModelProto:
        raise NotImplementedError


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    path = tiny_artifact(tmp_path / "a.onnx", input_hw=HW, buckets=(HW,), precision="int8")
    return load_artifact(path)


def images(red: int) -> list[Image]:
    """Four cells of some red, far enough from each other for NMS to keep them all."""
    cells = [(0, 0), (0, 2), (2, 0), (2, 2)]
    return [paint(HW, {cell: (red - i, 86 * (i % 3), 0) for i, cell in enumerate(cells)})]


def test_what_is_the_same_agrees(artifact: Artifact) -> None:
    parity = measure_agreement(artifact, Cells(), images(250), "an image")
    assert parity.agreement == 1
    assert parity.compared == 8 * 4
    assert max(parity.tensors.boxes_px, parity.detections.boxes_px) < 1e-3
    assert max(parity.tensors.scores, parity.detections.scores) < 1e-3
    assert parity.images == "an image"


def test_moved_boxes_are_the_same_detections_so_far_apart(artifact: Artifact) -> None:
    parity = measure_agreement(artifact, Cells(shift_px=3), images(250), "an image")
    assert parity.agreement == 1
    assert parity.tensors.boxes_px == pytest.approx(3, abs=1e-3)
    # At a border they are cut off; an image that fills 0.92 of its side is scaled by that.
    assert 3 <= parity.detections.boxes_px < 3.4


def test_other_classes_are_other_detections(artifact: Artifact) -> None:
    parity = measure_agreement(artifact, Cells(class_shift=1), images(250), "an image")
    assert parity.agreement == 0
    assert parity.compared == 8 * 4


def test_a_threshold_that_had_to_be_lowered_is_told(artifact: Artifact) -> None:
    parity = measure_agreement(artifact, Cells(), images(150), "an image")
    assert parity.agreement == 1
    assert parity.images.startswith("an image, compared down to a confidence of 0.")
