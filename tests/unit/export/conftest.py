"""What tests of checkpoints start from."""

from collections.abc import Iterator

import pytest

from tests.support.forks import Fork


@pytest.fixture
def fork() -> Iterator[Fork]:
    """Somebody's package, gone after the test if it is not before."""
    fork = Fork()
    yield fork
    fork.leave()
