"""What is known of one image, and many of these as a Parquet file."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from server.inference.detector import ImageDetections

DETECTION = pa.struct(
    [
        pa.field("class_id", pa.int32(), nullable=False),
        pa.field("class_name", pa.string(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        *(pa.field(name, pa.float32(), nullable=False) for name in ("x1", "y1", "x2", "y2")),
    ]
)
SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("detections", pa.list_(pa.field("element", DETECTION, nullable=False))),
        pa.field("truncated", pa.bool_()),
        pa.field("error_code", pa.string()),
        pa.field("error_detail", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class ImageError:
    """Why there are no detections of an image: a code of the server's, or "unreadable_file"."""

    code: str
    detail: str


def path_text(path: bytes) -> str:
    r"""A path as the results name it; bytes that are not UTF-8 come as \xe9."""
    return path.decode(errors="backslashreplace")


def to_parquet(
    paths: Sequence[bytes],
    outcomes: Sequence[ImageDetections | ImageError],
    class_names: Sequence[str],
    metadata: dict[str, str],
) -> bytes:
    """A whole Parquet file of one row for each image, in the order given.

    Args:
        paths: inside the folder of the images.
        outcomes: one for each path; boxes are xyxy in upright original pixels.
        class_names: by class id.
        metadata: goes into the file's key-value metadata.
    """
    found = [each if isinstance(each, ImageDetections) else None for each in outcomes]
    errors = [each if isinstance(each, ImageError) else None for each in outcomes]
    columns = {
        "path": [path_text(path) for path in paths],
        "width": [each and each.width for each in found],
        "height": [each and each.height for each in found],
        "detections": _detections(found, class_names),
        "truncated": [each and each.truncated for each in found],
        "error_code": [each and each.code for each in errors],
        "error_detail": [each and each.detail for each in errors],
    }
    table = pa.table(columns, schema=SCHEMA.with_metadata(metadata))
    file = BytesIO()
    parquet.write_table(table, file)
    return file.getvalue()


def _detections(found: Sequence[ImageDetections | None], class_names: Sequence[str]) -> pa.Array:
    """The lists of all images as one array: null where an image could not be read."""
    there = [each.detections for each in found if each is not None]
    counts = [len(each.detections.scores) if each else 0 for each in found]
    class_ids = _joined([each.class_ids for each in there], np.int32)
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *(each.boxes for each in there)])
    values = pa.StructArray.from_arrays(
        [
            pa.array(class_ids),
            pa.array(class_names, pa.string()).take(pa.array(class_ids)),
            pa.array(_joined([each.scores for each in there], np.float32)),
            *(pa.array(np.ascontiguousarray(boxes[:, i])) for i in range(4)),
        ],
        fields=list(DETECTION),
    )
    offsets = np.cumsum([0, *counts]).astype(np.int32)
    # An offset that is null makes its list null.
    missing = np.array([*(each is None for each in found), False])
    kind = SCHEMA.field("detections").type
    return pa.ListArray.from_arrays(pa.array(offsets, mask=missing), values, type=kind)


def _joined(arrays: Sequence[Any], dtype: type[np.generic]) -> Any:
    return np.concatenate([np.zeros(0, dtype), *arrays]).astype(dtype)
