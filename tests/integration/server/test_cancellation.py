"""A request that is cut off at any of its awaits leaves nothing behind; a reload beside it, too."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.support.serving import Served, calls, one_cell, served

pytestmark = pytest.mark.anyio
IMAGE = one_cell()
KEY = {"X-API-Key": "secret"}
FILES = [("file", (f"{i}.png", IMAGE if i % 3 else b"broken", "image/png")) for i in range(7)]
PIXELS = [
    {"name": "images", "datatype": "UINT8", "shape": [2, 64, 64, 3], "data": [0] * 2 * 64 * 64 * 3}
]
STEPS = 60  # of the event loop; a request takes less, but for what it waits on threads


async def detect(running: Served) -> int:
    return (await running.client.post("/detect", files=FILES, headers=KEY)).status_code


async def infer_pixels(running: Served) -> int:
    path = f"/v2/models/{running.service.model.name}-raw/infer"
    body: dict[str, Any] = {"inputs": PIXELS}
    return (await running.client.post(path, json=body, headers=KEY)).status_code


async def reload(running: Served) -> int:
    return (await running.client.post("/model/reload", headers=KEY)).status_code


@pytest.mark.parametrize("ask", [detect, infer_pixels, reload])
async def test_a_request_cut_off_at_any_await_leaves_nothing_behind(
    artifact: Path, ask: Any
) -> None:
    async with served(artifact, api_keys="secret", intra_op_threads=None) as running:
        for steps in range(STEPS):
            cut_off = asyncio.create_task(ask(running))
            beside = asyncio.create_task(detect(running))
            for _ in range(steps):
                await asyncio.sleep(0)
            cut_off.cancel()
            await asyncio.wait([cut_off])
            assert cut_off.cancelled() or cut_off.result() == 200
            assert await beside == 200
        batcher = calls(running).batcher
        await running.until(lambda: batcher.running_batches == 0)
        assert (
            batcher.queue_images
            == batcher._waiting.weight
            == calls(running).status().active_inferences
            == 0
        )
        assert not running.service._limits
        metrics = (await running.client.get("/metrics")).text
        assert "detector_inflight_body_bytes 0.0" in metrics
        assert await ask(running) == 200


async def test_requests_beside_many_reloads_are_all_answered(artifact: Path) -> None:
    async with served(artifact, api_keys="secret", intra_op_threads=None) as running:
        requests = [asyncio.create_task(detect(running)) for _ in range(12)]
        reloads = [asyncio.create_task(reload(running)) for _ in range(12)]
        assert set(await asyncio.gather(*requests, *reloads)) == {200}
        assert running.queue_images == 0
