"""Sessions for tests/gpu, with and without CUDA graphs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from server.inference.artifact import Artifact
from server.inference.session import Session

RecordProperty = Callable[[str, object], None]  # of pytest's fixture
Calls = Literal["plain", "graphs"]
CALLS: tuple[Calls, ...] = ("plain", "graphs")
BATCH_SIZE = 8


@contextmanager
def open_session(artifact: Artifact, device: str, calls: Calls) -> Iterator[Session]:
    """A warm session."""
    graphs = calls == "graphs"
    session = Session.open(artifact, device=device, max_batch_size=BATCH_SIZE, cuda_graphs=graphs)
    try:
        session.warm_up(range(1, BATCH_SIZE + 1))
        yield session
    finally:
        session.close()
