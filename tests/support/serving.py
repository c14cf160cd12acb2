"""An app around the tiny artifact, and sessions that a test can hold back or break."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray

from server.api.app import create_app
from server.errors import InferenceFailed
from server.http.state import state_of
from server.inference.artifact import Artifact
from server.inference.engine import Engine, OpenSession
from server.inference.session import Session
from server.serving.model_runner import ModelRunner
from server.serving.service import Service
from server.settings import Settings
from tests.support.artifacts import paint

LIMIT_S = 20  # nothing in these tests takes long; a hang must not last until the suite's timeout
RED = (255, 0, 0)  # one sure detection of class 0, exactly as large as its cell


@dataclass
class Served:
    """A running app, a client of it, and its service."""

    client: httpx.AsyncClient
    service: Service
    app: FastAPI
    failures: list[BaseException | None]

    @property
    def queue_images(self) -> int:
        """Images that wait, or are reserved a place."""
        return self.service.model.queue.status().queue_images

    async def until(self, condition: Callable[[], bool]) -> None:
        """Lets the app work until something holds."""
        async with asyncio.timeout(LIMIT_S):
            while not condition():  # noqa: ASYNC110  # the app's state has no event
                await asyncio.sleep(0)


@asynccontextmanager
async def served(
    artifact: Path,
    *,
    open_session: Callable[[Artifact, Settings], OpenSession] | None = None,
    wait_until_ready: bool = True,
    memory_bytes: int | None = None,
    cpu_fallback: str | None = None,
    **settings: Any,
) -> AsyncIterator[Served]:
    """Runs the app in this process, without a socket."""
    # model_validate reads no environment.
    given = {"model": artifact, "device": "cpu", "intra_op_threads": 1} | settings
    chosen = Settings.model_validate(given)
    failures: list[BaseException | None] = []

    def one_instance(artifacts: Sequence[Artifact], settings: Settings) -> Engine:
        assert open_session is not None
        session = open_session(artifacts[0], settings)
        size = settings.max_batch_size or 8
        engine = Engine(artifacts[0], "a test's", session, max_batch_size=size)
        engine.cpu_fallback = cpu_fallback
        return engine

    app = create_app(
        chosen,
        open_engine=one_instance if open_session else None,
        memory_bytes=memory_bytes,
        on_failure=lambda: failures.append(state_of(app).service.model.failure),
    )
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test", timeout=LIMIT_S) as client,
    ):
        running = Served(client, state_of(app).service, app, failures)
        if wait_until_ready:
            await running.until(lambda: running.service.model.state == "ready")
        yield running


class HeldSession:
    """The real session behind a gate; remembers the size of every batch that came to it."""

    def __init__(self, artifact: Artifact, settings: Settings) -> None:
        self._session = Session.open(artifact, device="cpu", threads=1)
        self.gate = threading.Event()
        self.batch_sizes: list[int] = []

    @property
    def provider(self) -> str:
        return self._session.provider

    @property
    def device(self) -> str:
        return self._session.device

    def warm_up(self, batch_sizes: Sequence[int]) -> None:
        self._session.warm_up(batch_sizes)

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.batch_sizes.append(len(images))
        assert self.gate.wait(LIMIT_S)
        return self._session.run(images)


class LosingSession(HeldSession):
    """Like a CUDA context: after one bad batch nothing runs on it any more."""

    lost = False

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.lost = True
        raise InferenceFailed("CUDA failure 700") from RuntimeError("illegal memory access")

    def warm_up(self, batch_sizes: Sequence[int]) -> None:
        if self.lost:
            raise InferenceFailed("CUDA failure 700")


class NotANumber(HeldSession):
    """A model that overflowed: a sure detection without a place."""

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        nowhere = [np.nan, np.nan, np.nan, np.nan, 1, 0]
        return np.tile(np.array(nowhere, np.float32), (len(images), 1, 1))


def held(running: Served) -> HeldSession:
    """The session of an app that was served with `open_session=HeldSession`."""
    assert isinstance(running.service.model.engine, Engine)
    session = running.service.model.engine._session
    assert isinstance(session, HeldSession)
    return session


def calls(running: Served) -> ModelRunner:
    """The queue of an app, and the inferences behind it."""
    assert isinstance(running.service.model.queue, ModelRunner)
    return running.service.model.queue


def encode(image: NDArray[np.uint8], extension: str = ".png") -> bytes:
    """An (H, W, 3) uint8 RGB image as a file."""
    return cv2.imencode(extension, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


def one_cell(hw: tuple[int, int] = (64, 64), cell: tuple[int, int] = (0, 1)) -> bytes:
    """A PNG with one red cell: one detection of class 0 and score 1."""
    return encode(paint(hw, {cell: RED}))
