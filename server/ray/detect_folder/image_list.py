"""The list of a job's images: written once, before anything is detected, and read by slices."""

import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import pyarrow as pa
from pyarrow import parquet

from server.ray.detect_folder.errors import JobStopped
from server.ray.detect_folder.folders import Folder

# A format of columns and row groups, so that a slice is read without what is before it. Without
# the suffix: what reads all *.parquet below the results must not take it for one.
NAME = "_job/images"
SUFFIXES = (b".bmp", b".jpeg", b".jpg", b".png", b".tif", b".tiff", b".webp")
SCHEMA = pa.schema([pa.field("path", pa.binary(), nullable=False)])
ID = b"list_id"  # in the metadata
ROWS_AT_ONCE = 1000


class Listed(NamedTuple):
    """How many files are in the list, and how many were left out for their names."""

    images: int
    others: int


def write_list(
    source: Folder, out: Folder, list_id: str, *, all_files: bool, left_out: bytes | None
) -> Listed:
    """Lists a folder into the results' folder; needs memory for `ROWS_AT_ONCE` paths.

    Args:
        source: where the images are.
        out: where the results will be.
        list_id: that `read_list` has to be asked with.
        all_files: also those whose names do not end as an image's.
        left_out: a folder inside `source` that is not looked into.
    """
    images = others = 0

    def listed() -> Iterator[bytes]:
        nonlocal images, others
        for path in source.files():
            if left_out is not None and path.startswith(left_out + b"/"):
                continue
            if all_files or path.lower().endswith(SUFFIXES):
                images += 1
                yield path
            else:
                others += 1

    with tempfile.TemporaryFile(prefix="yolov8-fla-list-") as file:
        schema = SCHEMA.with_metadata({ID: list_id})
        with parquet.ParquetWriter(file, schema) as writer:
            for paths in _grouped(listed(), ROWS_AT_ONCE):
                writer.write_table(pa.table({"path": paths}, schema=schema))
        file.seek(0)
        out.write(NAME, file)
    return Listed(images, others)


def read_list(out: Folder, list_id: str, start: int, end: int) -> list[bytes]:
    """The paths from `start` up to, not including, `end`.

    Raises:
        JobStopped: it is not the list that was asked for any more.
    """
    first, last = start // ROWS_AT_ONCE, (end - 1) // ROWS_AT_ONCE
    with out.open(NAME) as file:
        written = parquet.ParquetFile(file)
        if written.schema_arrow.metadata[ID] != list_id.encode():
            raise JobStopped(f"{out.address}/{NAME} is the list of another job, begun since")
        groups = written.read_row_groups(range(first, last + 1))
    paths: list[bytes] = groups.column("path").to_pylist()
    return paths[start - first * ROWS_AT_ONCE : end - first * ROWS_AT_ONCE]


def _grouped(items: Iterable[bytes], size: int) -> Iterator[list[bytes]]:
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group
