"""The app around the tiny artifact, in this process."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.serving import Served, served


@pytest.fixture
async def running(artifact: Path) -> AsyncIterator[Served]:
    async with served(artifact) as running:
        yield running
