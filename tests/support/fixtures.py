from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from tests.support.artifacts import tiny_artifact


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def plain_tracebacks() -> Iterator[None]:
    """As the server logs them; structlog's own default keeps local variables, images among them."""
    renderer = structlog.dev.ConsoleRenderer(
        colors=False, exception_formatter=structlog.dev.plain_traceback
    )
    structlog.configure(processors=[*structlog.get_config()["processors"][:-1], renderer])
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a few kilobytes whose answers follow from the pixels."""
    return tiny_artifact(tmp_path_factory.mktemp("artifact") / "tiny.onnx")
