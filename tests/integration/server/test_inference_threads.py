"""The threads that inferences run on, and what a request keeps of its images."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from server.inference.artifact import Artifact
from server.serving.threads import MODEL_NICENESS
from server.settings import Settings
from server.vision.nms import DetectParameters
from tests.support.serving import HeldSession, held, one_cell, served

pytestmark = pytest.mark.anyio
IMAGE = one_cell()


class Watched(HeldSession):
    """Remembers the threads that called it, and how nice they are."""

    def __init__(self, artifact: Artifact, settings: Settings) -> None:
        super().__init__(artifact, settings)
        self.gate.set()
        self.threads: set[int] = set()
        self.niceness: set[int] = set()

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        thread = threading.get_native_id()
        self.threads.add(thread)
        self.niceness.add(os.getpriority(os.PRIO_PROCESS, thread))
        return super().run(images)


async def test_one_instance_is_one_thread(artifact: Path) -> None:
    async with served(artifact, open_session=Watched) as running:
        session = held(running)
        assert isinstance(session, Watched)
        for _ in range(20):
            assert (await running.client.post("/detect", content=IMAGE)).status_code == 200
        assert len(session.threads) == 1
        # The rest of the process goes first.
        own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        assert session.niceness == {min(19, own + MODEL_NICENESS)}


@pytest.mark.parametrize(("own", "expected"), [(0, 5), (10, 15), (19, 19)])
def test_a_process_that_is_nice_already_serves_all_the_same(own: int, expected: int) -> None:
    base = os.getpriority(os.PRIO_PROCESS, 0)
    if base:
        pytest.skip(f"these tests run at niceness {base}, not 0")
    program = (
        "import os, threading\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from server.serving.threads import be_nice\n"
        "pool = ThreadPoolExecutor(1, initializer=be_nice, initargs=(5,))\n"
        "ask = lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id())\n"
        "print(pool.submit(ask).result(), os.getpriority(os.PRIO_PROCESS, 0))\n"
    )
    done = subprocess.run(
        ["nice", "-n", str(own), sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.split() == [str(expected), str(own)]


@pytest.mark.parametrize("draws", [False, True])
async def test_boxes_are_drawn_where_images_are_decoded(artifact: Path, draws: bool) -> None:
    async with served(artifact) as running:
        service = running.service
        async with service.accept() as deadline:
            thread = await service.pipeline.detect(
                service.current(),
                [IMAGE],
                DetectParameters(),
                deadline,
                lambda _: threading.current_thread().name,
                draws=draws,
            )
    assert thread.startswith("decode" if draws else "respond")
