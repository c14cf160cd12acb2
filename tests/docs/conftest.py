"""A fresh checkout for all pages, so that its environment for serving is made once."""

from pathlib import Path

import pytest

from tests.docs.checkout import Checkout, NotAClone, fresh_checkout


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def checkout(repo_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """What somebody has who has just cloned the repository."""
    try:
        return fresh_checkout(repo_dir, tmp_path_factory.mktemp("cloned"))
    except NotAClone as reason:
        pytest.skip(f"needs a clone: {reason}")
