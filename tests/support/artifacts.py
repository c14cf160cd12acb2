"""Builds tiny artifacts whose detections a test can predict from the pixels it painted.

The model looks at the middle pixel of each 32 x 32 cell of its input:

    red    score: 0 up to 128, then rising to 1 at 255; so black, and the grey pad, score 0
    green  class id: green // 86, that is 0, 1 or 2
    blue   the box is the cell, grown by blue / 8 pixels on every side

One artifact can fail on demand: a batch in which the first pixel of an image is `POISON`
raises inside ONNX Runtime.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from server.inference.artifact import METADATA_KEY, SCHEMA_VERSION, Metadata, graph_sha256
from server.inference.certificate import Certificate

CELL = 32
CLASS_NAMES = ("RBC", "WBC", "Platelets")
POISON = (1, 2, 3)
BUCKETS = ((64, 64), (32, 64), (64, 32))


def tiny_artifact(
    path: Path,
    *,
    input_hw: tuple[int, int] = (64, 64),
    buckets: Sequence[tuple[int, int]] = BUCKETS,
    max_candidates: int = 1000,
    **overrides: Any,
) -> Path:
    """Writes an artifact of a few kilobytes.

    Args:
        path: the file to write.
        input_hw: export size, (height, width), multiples of 32.
        buckets: input shapes, (height, width), multiples of 32, <= input_hw.
        max_candidates: K; an input of fewer cells has as many candidates as cells.
        **overrides: other metadata values, such as `name`, in place of the built ones.

    Returns:
        `path`.
    """
    model = _model(max_candidates)
    certificate = Certificate(
        created="2026-01-01",
        verdict="equal" if overrides.get("precision", "fp32") == "fp32" else "within_gate",
        tensor_max_abs_diff_boxes_px=0.0,
        tensor_max_abs_diff_scores=0.0,
        tensor_p90_abs_diff_boxes_px=0.0,
        tensor_p90_abs_diff_scores=0.0,
        detections_compared=0,
        detections_agreement=1.0,
        detections_max_box_diff_px=0.0,
        detections_max_score_diff=0.0,
        batch_sizes=(1,),
        buckets=tuple(buckets),
        images="none: made for tests",
    )
    values: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "name": "tiny",
        "architecture": "cells",
        "class_names": CLASS_NAMES,
        "input_hw": input_hw,
        "stride": CELL,
        "buckets": tuple(buckets),
        "static": False,
        "max_candidates": max_candidates,
        "strides": (CELL,),
        "precision": "fp32",
        "opset": 17,
        "source_sha256": "0" * 64,
        "graph_sha256": graph_sha256(model.SerializeToString()),
        "tools": {"onnx": onnx.__version__},
        "certificate": certificate,
    }
    metadata = Metadata(**(values | overrides))
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, metadata.model_dump_json()
    path.write_bytes(model.SerializeToString())
    return path


def tiny_candidates(images: NDArray[np.uint8], max_candidates: int = 1000) -> NDArray[np.float32]:
    """What the tiny model answers, computed without it.

    Args:
        images: (B, H, W, 3) uint8 RGB.
        max_candidates: K.

    Returns:
        (B, min(K, cells), 6) float32; of equal scores the upper left cell first.
    """
    middle = images[:, CELL // 2 :: CELL, CELL // 2 :: CELL].astype(np.float32)
    batch, rows, columns, _ = middle.shape
    top, left = np.mgrid[0:rows, 0:columns].astype(np.float32) * CELL
    grow = middle[..., 2] / 8
    score = np.clip((middle[..., 0] - 128) / 127, 0, 1)
    class_id = np.floor(middle[..., 1] / 86)
    table = np.stack(
        [left - grow, top - grow, left + CELL + grow, top + CELL + grow, score, class_id], axis=-1
    ).reshape(batch, rows * columns, 6)
    best = np.argsort(-table[..., 4], axis=1, kind="stable")[:, :max_candidates]
    return np.take_along_axis(table, best[..., None], axis=1).astype(np.float32)


def endless_artifact(path: Path) -> Path:
    """A model whose first call, the warm-up, never returns."""
    model = onnx.load(tiny_artifact(path))
    scalar, value = TensorProto.BOOL, TensorProto.FLOAT
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Identity", ["v"], ["w"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", scalar, []),
            helper.make_tensor_value_info("v", value, None),
        ],
        [
            helper.make_tensor_value_info("go_on", scalar, []),
            helper.make_tensor_value_info("w", value, None),
        ],
    )
    model.graph.node[-1].output[0] = "once"
    trips = numpy_helper.from_array(np.array(2**62, np.int64), "trips")
    model.graph.initializer.append(trips)
    loop = helper.make_node("Loop", ["trips", "", "once"], ["candidates"], body=body)
    model.graph.node.append(loop)
    (entry,) = model.metadata_props
    digest = graph_sha256(model.SerializeToString())
    entry.value = json.dumps(json.loads(entry.value) | {"graph_sha256": digest})
    path.write_bytes(model.SerializeToString())
    return path


def paint(
    hw: tuple[int, int], cells: dict[tuple[int, int], tuple[int, int, int]]
) -> NDArray[np.uint8]:
    """A black (H, W, 3) uint8 RGB image with some of its 32 x 32 cells, (row, column), filled."""
    image = np.zeros((*hw, 3), np.uint8)
    for (row, column), colour in cells.items():
        image[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = colour
    return image


def _model(max_candidates: int) -> onnx.ModelProto:
    constants: dict[str, NDArray[Any]] = {
        "half": np.array([CELL // 2, CELL // 2], np.int64),
        "far": np.array([2**31, 2**31], np.int64),
        "hw_axes": np.array([1, 2], np.int64),
        "cell_steps": np.array([CELL, CELL], np.int64),
        "zero": np.array(0, np.int64),
        "one": np.array(1, np.int64),
        "two": np.array(2, np.int64),
        "last_axis": np.array([-1], np.int64),
        "first_axis": np.array([0], np.int64),
        "as_row": np.array([1, -1, 1], np.int64),
        "as_list": np.array([1, -1], np.int64),
        "k": np.array([max_candidates], np.int64),
        "flat": np.array([0, -1, 3], np.int64),
        "split": np.array([1, 1, 1], np.int64),
        "cell": np.array(CELL, np.float32),
        "eight": np.array(8, np.float32),
        "eighty_six": np.array(86, np.float32),
        "dark": np.array(128, np.float32),
        "range": np.array(127, np.float32),
        "low": np.array(0, np.float32),
        "high": np.array(1, np.float32),
        "pixel_start": np.array([0, 0], np.int64),
        "pixel_end": np.array([1, 1], np.int64),
        "poison": np.array(POISON, np.float32),
        "channel_axis": np.array([3], np.int64),
        "only": np.array([0], np.float32),
        "repeat": np.array([1, 1, 6], np.int64),
    }
    n = helper.make_node
    nodes = [
        n("Slice", ["images", "half", "far", "hw_axes", "cell_steps"], ["middle_u8"]),
        n("Cast", ["middle_u8"], ["middle"], to=TensorProto.FLOAT),  # (B, rows, columns, 3)
        n("Shape", ["middle"], ["shape"]),
        n("Gather", ["shape", "one"], ["rows"]),
        n("Gather", ["shape", "two"], ["columns"]),
        n("Mul", ["rows", "columns"], ["cells"]),
        n("Range", ["zero", "cells", "one"], ["index"]),
        n("Div", ["index", "columns"], ["row"]),
        n("Mod", ["index", "columns"], ["column"]),
        n("Reshape", ["row", "as_row"], ["row3"]),
        n("Reshape", ["column", "as_row"], ["column3"]),
        n("Cast", ["row3"], ["row_f"], to=TensorProto.FLOAT),
        n("Cast", ["column3"], ["column_f"], to=TensorProto.FLOAT),
        n("Mul", ["row_f", "cell"], ["top"]),  # (1, cells, 1)
        n("Mul", ["column_f", "cell"], ["left"]),
        n("Add", ["top", "cell"], ["bottom"]),
        n("Add", ["left", "cell"], ["right"]),
        n("Reshape", ["middle", "flat"], ["pixels"]),  # (B, cells, 3)
        n("Split", ["pixels", "split"], ["red", "green", "blue"], axis=2),
        n("Div", ["blue", "eight"], ["grow"]),
        n("Sub", ["left", "grow"], ["x1"]),
        n("Sub", ["top", "grow"], ["y1"]),
        n("Add", ["right", "grow"], ["x2"]),
        n("Add", ["bottom", "grow"], ["y2"]),
        n("Sub", ["red", "dark"], ["bright"]),
        n("Div", ["bright", "range"], ["unclipped"]),
        n("Clip", ["unclipped", "low", "high"], ["score"]),
        n("Div", ["green", "eighty_six"], ["class_f"]),
        n("Floor", ["class_f"], ["class_id"]),
        n("Concat", ["x1", "y1", "x2", "y2", "score", "class_id"], ["table"], axis=2),
        n("Squeeze", ["score", "last_axis"], ["scores"]),
        n("Reshape", ["cells", "last_axis"], ["cells1"]),
        n("Min", ["cells1", "k"], ["kept"]),
        n("TopK", ["scores", "kept"], ["top_scores", "top_index"], axis=1),
        n("Unsqueeze", ["top_index", "last_axis"], ["top_index3"]),
        n("Expand", ["top_index3", "repeat"], ["top_index6"]),
        n("GatherElements", ["table", "top_index6"], ["chosen"], axis=1),
        # An index out of range where an image begins with the poison pixel, else 0.
        n("Slice", ["images", "pixel_start", "pixel_end", "hw_axes"], ["pixel_u8"]),
        n("Cast", ["pixel_u8"], ["pixel"], to=TensorProto.FLOAT),
        n("Sub", ["pixel", "poison"], ["apart"]),
        n("Abs", ["apart"], ["apart_abs"]),
        n("ReduceSum", ["apart_abs", "channel_axis"], ["distance"]),
        n("ReduceMin", ["distance"], ["nearest"], keepdims=0),
        n("Equal", ["nearest", "low"], ["poisoned"]),
        n("Cast", ["poisoned"], ["bad_index"], to=TensorProto.INT64),
        n("Gather", ["only", "bad_index"], ["nothing"]),
        n("Add", ["chosen", "nothing"], ["candidates"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["B", "H", "W", 3])],
        [helper.make_tensor_value_info("candidates", TensorProto.FLOAT, ["B", "K", 6])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model
