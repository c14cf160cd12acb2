from pathlib import Path

import pytest

from tests.artifacts import tiny_artifact


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a few kilobytes whose answers follow from the pixels."""
    return tiny_artifact(tmp_path_factory.mktemp("artifact") / "tiny.onnx")
