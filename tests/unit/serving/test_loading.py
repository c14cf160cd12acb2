"""A model is loaded on its own thread, one after the other, and held by nobody but its user."""

import gc
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path

import pytest

from server.errors import ArtifactInvalid
from server.inference.artifact import Artifact
from server.inference.engine import Engine
from server.serving.local_model import Loader, open_onnx_engine
from server.settings import Settings
from tests.support.artifacts import tiny_artifact

LIMIT_S = 20


def settings(model: Path) -> Settings:
    # model_validate reads no environment.
    return Settings.model_validate({"model": model, "device": "cpu", "intra_op_threads": 1})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_artifact(tmp_path / "tiny.onnx")


def test_the_first_loading_begins_at_once_and_beside_its_owner(model: Path) -> None:
    go_on, threads = threading.Event(), []

    def held(artifacts: Sequence[Artifact], settings: Settings) -> Engine:
        threads.append(threading.current_thread())
        assert go_on.wait(LIMIT_S)
        return open_onnx_engine(artifacts, settings)

    loader = Loader(settings(model), held)
    assert loader.first is not None
    (artifact,) = loader.first.artifacts.result(LIMIT_S)
    assert artifact.path == model
    assert not loader.first.engine.done()
    go_on.set()
    assert loader.first.engine.result(LIMIT_S).artifact == artifact
    assert threads != [threading.current_thread()]
    loader.shut_down()


def test_files_that_cannot_be_served_fail_both(tmp_path: Path) -> None:
    loader = Loader(settings(tmp_path / "missing.onnx"))
    assert loader.first is not None
    for future in (loader.first.artifacts, loader.first.engine):
        with pytest.raises(ArtifactInvalid, match=r"missing\.onnx"):
            future.result(LIMIT_S)
    loader.shut_down()


def test_each_loading_reads_the_files_as_they_are_then(model: Path) -> None:
    loader = Loader(settings(model))
    assert loader.first is not None
    first = loader.first.engine.result(LIMIT_S).artifact.version
    tiny_artifact(model, max_candidates=3)
    assert loader.begin().engine.result(LIMIT_S).artifact.version != first
    loader.shut_down()


def test_a_file_that_is_replaced_while_it_is_loaded_is_refused(model: Path, tmp_path: Path) -> None:
    """Its description would be that of another model."""

    def replaced(artifacts: Sequence[Artifact], settings: Settings) -> Engine:
        tiny_artifact(tmp_path / "other.onnx", max_candidates=3).rename(model)
        return open_onnx_engine(artifacts, settings)

    loader = Loader(settings(model), replaced)
    assert loader.first is not None
    with pytest.raises(ArtifactInvalid, match="was replaced while it was loaded"):
        loader.first.engine.result(LIMIT_S)
    loader.shut_down()


def test_an_engine_that_was_taken_is_not_kept(model: Path) -> None:
    loader = Loader(settings(model))
    loading, loader.first = loader.first, None
    assert loading is not None
    engine = weakref.ref(loading.engine.result(LIMIT_S))
    del loading
    loader.begin().engine.result(LIMIT_S)  # the thread has turned to something else
    gc.collect()
    assert engine() is None
    loader.shut_down()
