"""Loading a model on a thread of its own: at the start, beside the imports, and at each reload."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from server import suppression
from server.artifact import Artifact, refuse_if_replaced
from server.choice import load_model
from server.engine import Engine
from server.memory import return_freed_memory
from server.settings import Settings
from server.threads import MODEL_NICENESS, nice_pool


@dataclass(frozen=True, slots=True)
class Loading:
    """A model that is being loaded.

    Attributes:
        artifacts: the files, read and checked; fails with `ArtifactInvalid`.
        engine: the best of them, open and warm; fails as that did, as `Engine.open` and
            `Engine.warm_up` do, or with `ArtifactInvalid` where the file was replaced meanwhile.
        started: when it began, in seconds of `time.perf_counter`.
    """

    artifacts: Future[tuple[Artifact, ...]]
    engine: Future[Engine]
    started: float = field(default_factory=time.perf_counter)


class Loader:
    """Loads what the settings name: at once, and as often as it is told; one after the other.

    Args:
        settings: the model, and how it runs.
        open_engine: loads the best of some files; ONNX Runtime by default.

    Attributes:
        first: the loading that begins at once; None when it was taken, as it holds its engine.
    """

    def __init__(
        self,
        settings: Settings,
        open_engine: Callable[[Sequence[Artifact], Settings], Engine] | None = None,
    ) -> None:
        self._settings = settings
        self._open_engine = open_engine or open_onnx_engine
        self._thread = nice_pool(1, "load", MODEL_NICENESS)
        self.first: Loading | None = self.begin()

    def begin(self) -> Loading:
        """Reads, checks, opens and warms the model files as they are now."""
        artifacts = self._thread.submit(load_model, self._settings.model)
        return Loading(artifacts, self._thread.submit(self._open_warm, artifacts))

    def return_memory(self) -> None:
        """Gives what an engine left back to the system, after what is being loaded."""
        self._thread.submit(return_freed_memory)

    def shut_down(self) -> None:
        """Ends the thread, without waiting for what it does."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _open_warm(self, artifacts: Future[tuple[Artifact, ...]]) -> Engine:
        read = artifacts.result()  # it ran before, on this thread
        suppression.load()  # not at the first request
        return_freed_memory()
        engine = self._open_engine(read, self._settings)
        engine.warm_up()
        refuse_if_replaced(engine.artifact)
        return engine


def open_onnx_engine(
    artifacts: Sequence[Artifact], settings: Settings, *, cpus: int | None = None
) -> Engine:
    """Loads the best of some files into ONNX Runtime; `cpus` as `Engine.open` takes them."""
    return Engine.open(
        artifacts,
        device=settings.device,
        precision=settings.precision,
        intra_op_threads=settings.intra_op_threads,
        max_batch_size=settings.max_batch_size,
        cpus=cpus,
        tensorrt_cache=settings.tensorrt_cache,
    )
