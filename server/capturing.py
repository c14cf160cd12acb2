"""Who may use the GPU while a CUDA graph is being recorded: nobody else."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Capturing:
    """Lets calls run side by side, and a recording alone.

    ONNX Runtime records in CUDA's global mode: whatever another thread of the process allocates or
    copies meanwhile fails, and the recording with it. So a model that is warmed up at a reload has
    to keep the one that serves waiting, for the time of a few calls.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = 0
        self._capturing = False

    @contextmanager
    def call(self) -> Iterator[None]:
        """Waits for recordings, those that wait included, and holds others off."""
        with self._changed:
            self._changed.wait_for(lambda: not self._capturing)
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Waits for calls that run, and holds off all others."""
        with self._changed:
            self._changed.wait_for(lambda: not self._capturing)
            self._capturing = True
        try:
            with self._changed:
                self._changed.wait_for(lambda: self._running == 0)
            yield
        finally:
            with self._changed:
                self._capturing = False
                self._changed.notify_all()


# Of the process, as CUDA's rule is.
CAPTURING = Capturing()
