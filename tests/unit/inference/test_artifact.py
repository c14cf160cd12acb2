import hashlib
import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from server.errors import ArtifactInvalid
from server.inference.artifact import (
    METADATA_KEY,
    graph_sha256,
    load_artifact,
    read_metadata,
)
from tests.support.artifacts import BUCKETS, CLASS_NAMES, tiny_artifact


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny_artifact(tmp_path / "tiny.onnx")


def test_an_artifact_is_read_without_a_session(path: Path) -> None:
    artifact = load_artifact(path)
    assert artifact.path == path
    assert artifact.metadata.class_names == CLASS_NAMES
    assert artifact.metadata.buckets == BUCKETS
    assert artifact.version == hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def test_the_hash_covers_the_graph_and_nothing_beside_it(path: Path) -> None:
    model = onnx.load(path)
    before = graph_sha256(path.read_bytes())
    assert before == hashlib.sha256(model.graph.SerializeToString()).hexdigest()
    entry = model.metadata_props.add()
    entry.key, entry.value = "author", "someone"
    model.doc_string = "a text beside the graph"
    assert graph_sha256(model.SerializeToString()) == before
    model.graph.node[0].name = "changed"
    assert graph_sha256(model.SerializeToString()) != before


def test_a_graph_that_was_changed_after_verification_is_refused(path: Path) -> None:
    model = onnx.load(path)
    model.graph.node[0].name = "changed"
    onnx.save(model, path)
    with pytest.raises(ArtifactInvalid, match="changed after verification"):
        read_metadata(path)


def test_other_metadata_beside_ours_is_left_alone(path: Path) -> None:
    model = onnx.load(path)
    for key, value in (("author", "Ünïcode"), ("names", "{0: 'x'}")):
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.save(model, path)
    assert read_metadata(path).name == "tiny"


def test_an_onnx_file_of_another_maker_is_refused_with_the_way_out(path: Path) -> None:
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, path)
    with pytest.raises(ArtifactInvalid, match=rf"no '{METADATA_KEY}' metadata.*python -m export"):
        read_metadata(path)


def test_a_file_that_is_replaced_while_it_is_read_has_the_version_of_what_was_read(
    path: Path, tmp_path: Path
) -> None:
    class Replaced(type(path)):  # type: ignore[misc]
        def open(self, *args: Any, **kwargs: Any) -> Any:
            opened = super().open(*args, **kwargs)
            tiny_artifact(tmp_path / "other.onnx", name="other").rename(self)
            return opened

    before = load_artifact(path)
    read = load_artifact(Replaced(path))
    assert (read.metadata, read.version) == (before.metadata, before.version)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactInvalid, match="cannot be read"):
        load_artifact(tmp_path)


def test_a_file_that_is_cut_off_anywhere_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    for size in range(1, len(whole), 37):
        path.write_bytes(whole[:size])
        with pytest.raises(ArtifactInvalid):
            read_metadata(path)


@pytest.mark.parametrize(
    "content",
    [
        b"PK\x03\x04 a zip, as .pt files are",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\n",
        b"\xff" * 100,
        b"<!DOCTYPE html><html>not found</html>",
        b"",
    ],
    ids=["zip", "lfs pointer", "ones", "html", "nothing"],
)
def test_a_file_that_is_no_onnx_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(ArtifactInvalid, match=r"not a complete ONNX file|is empty"):
        read_metadata(tmp_path / "model.onnx")


def test_a_checkpoint_must_be_exported_first(tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    path.write_bytes(b"PK\x03\x04 a zip")
    with pytest.raises(
        ArtifactInvalid, match=r"best\.pt: a checkpoint.*`python -m export .*best\.pt"
    ):
        read_metadata(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 1}, "schema 2 expected: schema_version"),
        ({"class_names": ()}, "class_names"),
        ({"precision": "fp8"}, "precision"),
        ({"graph_sha256": "abc"}, "graph_sha256"),
        ({"input_hw": (60, 64)}, "60x64 is no multiple of stride 32"),
        ({"buckets": ()}, "buckets"),
        ({"buckets": ((64, 64), (96, 64))}, "bucket 96x64 is larger"),
        ({"buckets": ((64, 64), (0, 64))}, "0x64 is no multiple"),
        ({"strides": (8, 12)}, "strides"),
        ({"static": True}, "a static model has the one bucket"),
        ({"surprise": 1}, "surprise"),
        ({"precision": "int8"}, "int8 does not go with the verdict 'equal'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_metadata_that_does_not_fit_the_schema_is_refused(
    path: Path, change: dict[str, Any], message: str
) -> None:
    model = onnx.load(path)
    (entry,) = model.metadata_props
    entry.value = json.dumps(json.loads(entry.value) | change)
    onnx.save(model, path)
    with pytest.raises(ArtifactInvalid, match=message):
        read_metadata(path)


def test_anchor_points_are_counted_on_every_level(path: Path) -> None:
    metadata = read_metadata(path).model_copy(update={"strides": (8, 16, 32)})
    assert metadata.anchors((640, 640)) == 8400
    assert metadata.anchors((384, 640)) == 5040


def test_a_draft_whose_certificate_proves_nothing_is_refused(tmp_path: Path) -> None:
    certificate = read_metadata(tiny_artifact(tmp_path / "whole.onnx")).certificate
    unproven = certificate.model_copy(update={"verdict": "draft"})
    path = tiny_artifact(tmp_path / "draft.onnx", certificate=unproven)
    with pytest.raises(ArtifactInvalid, match="never verified"):
        load_artifact(path)
