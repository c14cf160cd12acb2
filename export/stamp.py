"""Writes the artifact's description into the file, and the file into its place."""

import os
from pathlib import Path

import onnx

from server.artifact import METADATA_KEY, Metadata


def stamp(graph: onnx.ModelProto, metadata: Metadata, path: Path) -> None:
    """Writes graph and description as one file, in one step: whole, or not at all.

    Args:
        graph: the model; its other metadata is dropped.
        metadata: of this very graph.
        path: replaced when it exists; its folder must exist.
    """
    del graph.metadata_props[:]
    entry = graph.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, metadata.model_dump_json()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(graph.SerializeToString(deterministic=True))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
