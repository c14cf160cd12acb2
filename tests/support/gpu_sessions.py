"""Sessions for tests/gpu, in each way of making calls that a GPU has."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from server.inference.artifact import Artifact
from server.inference.cuda.options import CudaOptions
from server.inference.session import Session

RecordProperty = Callable[[str, object], None]  # of pytest's fixture
Calls = Literal["plain", "bound", "fixed", "captured"]
CALLS: tuple[Calls, ...] = ("plain", "bound", "fixed", "captured")
BATCH_SIZE = 8


@contextmanager
def open_session(artifact: Artifact, device: str, calls: Calls) -> Iterator[Session]:
    """A warm session; a CPU has one way of calls only."""
    if device == "cpu":
        session = Session.open(artifact, device=device)
    else:
        cuda = CudaOptions(calls=calls)
        session = Session.open(artifact, device=device, max_batch_size=BATCH_SIZE, cuda=cuda)
    try:
        session.warm_up(range(1, BATCH_SIZE + 1))
        yield session
    finally:
        session.close()
