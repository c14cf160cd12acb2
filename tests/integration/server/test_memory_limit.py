"""A server with little memory: images wait for it, or are refused; the process stays within."""

import asyncio
import io
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anyio
import cv2
import numpy as np
import pytest
from PIL import Image

from server.serving.decode_pool import LEAST_BYTES
from tests.support.processes import ready
from tests.support.serving import LIMIT_S, Served, encode, one_cell, served

pytestmark = pytest.mark.anyio
LITTLE = 1  # byte: decoding has its least
SMALL = one_cell()


def black(side: int) -> bytes:
    """A square PNG of few bytes; decoding takes 6.5 a pixel."""
    return encode(np.zeros((side, side, 3), np.uint8))


ONE_AT_A_TIME = black(1600)  # 18 MiB
DECODED_ONLY = black(2000)  # 28 MiB, and 38 to be drawn into
NEVER = black(2400)  # 38 MiB


async def post(running: Served, content: bytes, **params: str) -> int:
    response = await running.client.post("/detect", content=content, params=params)
    if response.status_code == 413:
        assert response.json()["code"] == "too_much_memory"
        assert re.search(rf"takes up to \d+ bytes .* has {LEAST_BYTES} ", response.text)
    return response.status_code


async def test_a_image_that_never_fits_is_refused_and_others_are_served(artifact: Path) -> None:
    async with served(artifact, memory_bytes=LITTLE) as running:
        assert running.service.pipeline.decoding.memory.max_bytes == LEAST_BYTES
        assert await post(running, NEVER) == 413
        assert await post(running, SMALL) == 200
        files = {"large": NEVER, "small": SMALL}
        both = (await running.client.post("/detect", files=files)).json()["results"]
        assert [each["error"] and each["error"]["code"] for each in both] == [
            "too_much_memory",
            None,
        ]


async def test_a_image_that_can_be_decoded_but_not_drawn_into_is_refused(artifact: Path) -> None:
    async with served(artifact, memory_bytes=LITTLE) as running:
        assert await post(running, DECODED_ONLY) == 200
        assert await post(running, DECODED_ONLY, format="image") == 413
        assert await post(running, SMALL, format="image") == 200
        assert running.service.pipeline.decoding.memory.taken == 0


async def test_images_that_do_not_fit_together_wait_for_each_other(artifact: Path) -> None:
    async with served(artifact, memory_bytes=LITTLE, decode_threads=4) as running:
        memory = running.service.pipeline.decoding.memory
        images = [ONE_AT_A_TIME, SMALL] * 8
        assert await asyncio.gather(*(post(running, each) for each in images)) == [200] * 16
        assert memory.taken == 0


async def test_one_that_waits_for_memory_keeps_no_thread_and_no_longer_than_its_deadline(
    artifact: Path,
) -> None:
    async with served(
        artifact, memory_bytes=LITTLE, decode_threads=1, request_timeout_s=0.5
    ) as running:
        memory = running.service.pipeline.decoding.memory
        others = await memory.wait_for(LEAST_BYTES)
        late = asyncio.create_task(post(running, ONE_AT_A_TIME))
        await running.until(lambda: bool(memory._waiting))
        assert await post(running, b"\xff\xd8\xff") == 422  # the one thread is free
        assert await late == 504
        assert not memory._waiting
        others.release()
        assert await post(running, ONE_AT_A_TIME) == 200


async def test_a_client_that_leaves_while_it_waits_lets_the_next_pass(artifact: Path) -> None:
    async with served(artifact, memory_bytes=LITTLE) as running:
        memory = running.service.pipeline.decoding.memory
        others = await memory.wait_for(LEAST_BYTES // 2)
        leaving = asyncio.create_task(post(running, ONE_AT_A_TIME))
        await running.until(lambda: bool(memory._waiting))
        behind = asyncio.create_task(post(running, SMALL))
        await running.until(lambda: len(memory._waiting) == 2)
        leaving.cancel()
        with anyio.fail_after(LIMIT_S):
            assert await behind == 200
        others.release()
        assert memory.taken == 0


async def test_bodies_have_their_share_of_the_memory_where_nobody_set_it(artifact: Path) -> None:
    for memory_bytes, expected in [(2**30, 2**27), (2**40, 2**28), (1, 2**25)]:
        async with served(artifact, memory_bytes=memory_bytes) as running:
            metrics = (await running.client.get("/metrics")).text
        found = re.search(r"^detector_max_inflight_body_bytes (\S+)$", metrics, re.MULTILINE)
        assert found is not None
        assert float(found[1]) == expected


# `python -m server` in a container of 512 MiB; no test can make one.
WITH_LITTLE_MEMORY = """
import os, sys
import cv2
from server.vision.decode import quiet_codecs
from server.serving.local_model import Loader
from server.observability.logs import configure_logging
from server.run import serve
from server.settings import Settings

cv2.setNumThreads(1)
quiet_codecs()
settings = Settings.load(sys.argv[2:])
configure_logging("json")
code = serve(settings, Loader(settings), memory_bytes=int(sys.argv[1]) * 2**20)
os._exit(code)
"""
LIMIT_MIB = 512


def costly_images() -> list[bytes]:
    """One of each kind that takes the most memory a pixel; 10 million pixels each."""
    deep = np.zeros((2500, 4000, 4), np.uint16)
    tiff = cv2.imencode(".tiff", deep)[1].tobytes()
    png = cv2.imencode(".png", deep)[1].tobytes()
    files = []
    for kind, mode, options in (
        ("JPEG", "CMYK", {"progressive": True}),
        ("JPEG", "RGB", {"progressive": True, "subsampling": 0}),
        ("WEBP", "RGB", {"save_all": True, "append_images": [Image.new("RGB", (4000, 2500))]}),
    ):
        buffer = io.BytesIO()
        Image.new(mode, (4000, 2500), 1).save(buffer, kind, **options)
        files.append(buffer.getvalue())
    return [tiff, png, *files]


@pytest.mark.slow
def test_the_process_stays_within_its_memory_under_the_costliest_images(
    repo_dir: Path, artifact: Path
) -> None:
    images = costly_images() * 6
    flags = ("--decode-threads", "8", "--jpeg-dct-scaling", "false")
    program = ("-c", WITH_LITTLE_MEMORY, str(LIMIT_MIB))
    with ready(repo_dir, artifact, *flags, program=program) as (server, client):
        event = server.wait_for("memory")
        assert event["limit_bytes"] == LIMIT_MIB * 2**20
        with ThreadPoolExecutor(8) as clients:
            answers = clients.map(lambda each: client.post("/detect", content=each), images)
            statuses = [answer.status_code for answer in answers]
        status = Path(f"/proc/{server.process.pid}/status").read_text(encoding="utf-8")
    assert statuses == [200] * len(images)
    peak_kib = int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])
    assert peak_kib < LIMIT_MIB * 1024
    # All of them at once would have taken far more than there is.
    assert 2 * LIMIT_MIB * 2**20 < 8 * 17 * 10_000_000
