"""The app on a socket of this process, so that a test can give it a session of its own."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from server.api.app import create_app
from server.inference.artifact import Artifact
from server.inference.engine import Engine
from server.settings import Settings
from tests.browser.on_a_socket import on_a_socket
from tests.support.serving import HeldSession


@contextmanager
def served_here(
    artifact: Path, *, cpu_fallback: str | None = None, **settings: Any
) -> Iterator[tuple[str, threading.Event]]:
    """Serves an artifact one image at a time.

    Args:
        artifact: the model.
        cpu_fallback: what the engine says of a GPU that it does not run on.
        **settings: beside the model.

    Yields:
        Its URL; and the gate that each inference waits for, which is closed.
    """
    gate = threading.Event()

    def one_instance(artifacts: Sequence[Artifact], settings: Settings) -> Engine:
        session = HeldSession(artifacts[0], settings)
        session.gate = gate
        engine = Engine(artifacts[0], "a test's", session, max_batch_size=1)
        engine.cpu_fallback = cpu_fallback
        return engine

    given = {"model": artifact, "device": "cpu", "intra_op_threads": 1} | settings
    app = create_app(Settings.model_validate(given), open_engine=one_instance)
    with on_a_socket(app) as url:
        try:
            yield url, gate
        finally:
            gate.set()
