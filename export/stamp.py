"""Writes the artifact's description into the file, and the file into its place."""

import os
import tempfile
from pathlib import Path

import onnx

from export.errors import OutputExists
from server.inference.artifact import METADATA_KEY, Artifact, Metadata, load_artifact


def write(graph: onnx.ModelProto, metadata: Metadata, path: Path) -> None:
    """Writes graph and description as one file.

    Args:
        graph: the model; its other metadata is dropped.
        metadata: of this very graph.
        path: a new file.
    """
    with path.open("xb") as file:
        file.write(content(graph, metadata))
        file.flush()
        os.fsync(file.fileno())


def content(graph: onnx.ModelProto, metadata: Metadata) -> bytes:
    """The bytes of a file with this graph and this description."""
    del graph.metadata_props[:]
    entry = graph.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, metadata.model_dump_json()
    serialized: bytes = graph.SerializeToString(deterministic=True)
    return serialized


def with_its_size(graph: onnx.ModelProto, metadata: Metadata) -> Metadata:
    """The description with the size of the file that it will be part of."""
    size = -1
    while size != metadata.certificate.file_bytes:  # ends: more digits only make it longer
        size = len(content(graph, metadata))
        certificate = metadata.certificate.model_copy(update={"file_bytes": size})
        metadata = metadata.model_copy(update={"certificate": certificate})
        size = len(content(graph, metadata))
    return metadata


def stamp(graph: onnx.ModelProto, metadata: Metadata, path: Path, *, force: bool) -> Artifact:
    """Writes the artifact, reads it back, and only then puts it into its place, in one step.

    Args:
        graph: as `write` takes it.
        metadata: with the certificate.
        path: made with its folders; what a link there points to stays.
        force: replace an existing file.

    Raises:
        OutputExists: a file is there, or came there meanwhile, and `force` is false.
        ArtifactInvalid: what was written does not read back as an artifact.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A folder of our own beside the output: same file system, and no name that others guess.
    with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as folder:
        complete = Path(folder) / path.name
        write(graph, with_its_size(graph, metadata), complete)
        load_artifact(complete)
        publish(complete, path, force=force)
    return load_artifact(path)


def publish(complete: Path, path: Path, *, force: bool) -> None:
    """Puts a file into its place; `OutputExists` when there is one that must stay."""
    if not force:
        try:
            os.link(complete, path)  # unlike a rename, this never replaces
            return
        except FileExistsError:
            raise OutputExists(f"{path}: there is a file already; --force replaces it") from None
        except OSError:  # a file system without links
            if path.exists():
                raise OutputExists(f"{path}: there is a file already") from None
    complete.replace(path)
