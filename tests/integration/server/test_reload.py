"""Another model in the same place: SIGHUP and `POST /model/reload`, below live requests."""

import asyncio
import gc
import shutil
import threading
import weakref
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from server.errors import InferenceFailed
from server.inference.artifact import Artifact, load_artifact
from server.serving.decode_pool import MemoryReservation
from server.settings import Settings
from tests.support.artifacts import tiny_artifact
from tests.support.serving import LIMIT_S, HeldSession, Served, held, one_cell, served

pytestmark = pytest.mark.anyio
IMAGE = one_cell()
KEY = {"X-API-Key": "secret"}


@pytest.fixture
def model(artifact: Path, tmp_path: Path) -> Path:
    """A model file that a test may replace."""
    return Path(shutil.copy(artifact, tmp_path / "model.onnx"))


@pytest.fixture
async def running(model: Path) -> AsyncIterator[Served]:
    async with served(model, api_keys="secret") as running:
        yield running


def replace(model: Path) -> str:
    """Puts another model in the place of one; returns its version."""
    other = tiny_artifact(model.with_name("other.onnx"), max_candidates=7)
    other.rename(model)
    return load_artifact(model).version


def break_file(model: Path, damage: str) -> None:
    content = model.read_bytes()
    if damage == "gone":
        model.unlink()
    else:
        bad = content[:-20] if damage == "cut" else content.replace(b"Gather", b"Gathex")
        model.write_bytes(bad)


async def version_of(running: Served) -> str:
    response = await running.client.post("/detect", content=IMAGE, headers=KEY)
    assert response.status_code == 200, response.text
    return str(response.json()["model"]["version"])


async def test_a_reload_serves_the_file_that_lies_there_now(running: Served, model: Path) -> None:
    before = await version_of(running)
    after = replace(model)
    assert await version_of(running) == before != after
    response = await running.client.post("/model/reload", headers=KEY)
    assert response.status_code == 200
    assert response.json()["version"] == after
    assert await version_of(running) == after
    metrics = (await running.client.get("/metrics")).text
    assert f'version="{after}"' in metrics
    assert f'version="{before}"' not in metrics
    assert 'detector_reloads_total{outcome="ok"} 1.0' in metrics


@pytest.mark.parametrize("damage", ["cut", "gone", "changed"])
async def test_a_bad_file_is_refused_and_the_old_model_goes_on(
    running: Served, model: Path, damage: str
) -> None:
    before = await version_of(running)
    break_file(model, damage)
    response = await running.client.post("/model/reload", headers=KEY)
    assert response.status_code == 409
    assert response.json()["code"] == "reload_failed"
    assert str(model) in response.json()["detail"]
    assert "goes on serving" in response.json()["detail"]
    assert await version_of(running) == before
    metrics = (await running.client.get("/metrics")).text
    assert 'detector_reloads_total{outcome="failed"} 1.0' in metrics


async def test_a_model_that_cannot_warm_up_is_refused(model: Path) -> None:
    class WarmsUpOnce(HeldSession):
        opened = 0

        def __init__(self, artifact: Artifact, settings: Settings) -> None:
            super().__init__(artifact, settings)
            WarmsUpOnce.opened += 1

        def warm_up(self, batch_sizes: object) -> None:
            if WarmsUpOnce.opened > 1:
                raise InferenceFailed("no memory")

    async with served(model, open_session=WarmsUpOnce, api_keys="secret") as running:
        held(running).gate.set()
        response = await running.client.post("/model/reload", headers=KEY)
        assert response.status_code == 409
        assert "no memory" in response.json()["detail"]
        assert await version_of(running) == load_artifact(model).version


@pytest.mark.parametrize(
    ("fault", "detail"),
    [
        (
            OSError(28, "No space left on device", "/cache"),
            "No space left on device: '/cache'; the",
        ),
        (RuntimeError("planted"), "the server failed; its log has the reason; the"),
    ],
    ids=["system", "own"],
)
async def test_a_fault_that_nobody_expected_fails_the_reload_and_nothing_else(
    model: Path, fault: Exception, detail: str
) -> None:
    opened = 0

    def open_session(artifact: Artifact, settings: Settings) -> HeldSession:
        nonlocal opened
        opened += 1
        if opened > 1:
            raise fault
        return HeldSession(artifact, settings)

    async with served(model, open_session=open_session, api_keys="secret") as running:
        held(running).gate.set()
        response = await running.client.post("/model/reload", headers=KEY)
        assert (response.status_code, response.json()["code"]) == (409, "reload_failed")
        assert detail in response.json()["detail"]
        assert "planted" not in response.text
        assert await version_of(running) == load_artifact(model).version
        metrics = (await running.client.get("/metrics")).text
        assert 'detector_reloads_total{outcome="failed"} 1.0' in metrics
        assert 'detector_reloads_total{outcome="ok"} 0.0' in metrics


async def test_a_request_is_finished_by_the_model_that_it_began_with(model: Path) -> None:
    async with served(model, open_session=HeldSession, api_keys="secret") as running:
        old = held(running)
        before = load_artifact(model).version
        runs = asyncio.create_task(version_of(running))
        await running.until(lambda: old.batch_sizes == [1])
        waits = asyncio.create_task(version_of(running))
        await running.until(lambda: running.queue_images == 1)
        after = replace(model)
        assert (await running.client.post("/model/reload", headers=KEY)).status_code == 200
        new = held(running)
        assert new is not old
        joins = asyncio.create_task(version_of(running))
        await running.until(lambda: running.queue_images == 2)
        new.gate.set()
        old.gate.set()
        assert list(await asyncio.gather(runs, waits, joins)) == [before, before, after]
        assert old.batch_sizes == [1, 1]
        assert new.batch_sizes == [1]


async def test_the_old_model_is_released(running: Served, model: Path) -> None:
    await version_of(running)
    assert running.service.model.engine is not None
    old = weakref.ref(running.service.model.engine)
    replace(model)
    await running.client.post("/model/reload", headers=KEY)
    await asyncio.sleep(0)
    gc.collect()
    assert old() is None


async def test_a_reload_needs_a_key(running: Served, artifact: Path) -> None:
    assert (await running.client.post("/model/reload")).status_code == 401
    async with served(artifact) as open_to_all:
        response = await open_to_all.client.post("/model/reload")
        assert response.status_code == 403
        assert response.json()["code"] == "keys_not_configured"


async def test_while_a_reload_reads_the_keys_requests_are_answered(running: Served) -> None:
    answered = threading.Event()

    def read_keys() -> None:
        assert answered.wait(LIMIT_S)

    reloading = asyncio.create_task(running.service.model.reload(read_keys))
    await running.until(lambda: running.service.model._reloading.locked())  # type: ignore[attr-defined]
    assert (await running.client.get("/health/live")).status_code == 200
    answered.set()
    await reloading


async def test_reloads_at_the_same_time_follow_each_other(running: Served, model: Path) -> None:
    replace(model)
    reloads = [running.client.post("/model/reload", headers=KEY) for _ in range(3)]
    answers, _ = await asyncio.gather(
        asyncio.gather(*reloads), asyncio.gather(*(version_of(running) for _ in range(5)))
    )
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    metrics = (await running.client.get("/metrics")).text
    assert 'detector_reloads_total{outcome="ok"} 3.0' in metrics


async def test_while_draining_nothing_is_reloaded(model: Path) -> None:
    async with served(model, open_session=HeldSession, api_keys="secret") as running:
        running.service.model.begin_drain()
        response = await running.client.post("/model/reload", headers=KEY)
        assert (response.status_code, response.json()["code"]) == (503, "draining")


async def test_an_inference_that_does_not_return_fails_liveness(artifact: Path) -> None:
    async with served(artifact, open_session=HeldSession, inference_watchdog_s=0.05) as running:
        session = held(running)
        request = asyncio.create_task(running.client.post("/detect", content=IMAGE))
        await running.until(lambda: session.batch_sizes == [1])
        assert (await running.client.get("/health/live")).status_code == 200
        await running.until(lambda: running.service.status == "hung")
        for path in ("/health/live", "/health/ready"):
            response = await running.client.get(path)
            assert response.status_code == 503
            assert "inference_watchdog_s is 0.05" in response.json()["detail"]
        health = await running.client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "hung")
        session.gate.set()
        async with asyncio.timeout(LIMIT_S):
            assert (await request).status_code == 200
        assert (await running.client.get("/health")).json()["status"] == "ready"
        assert (await running.client.get("/health/live")).status_code == 200


async def test_decoding_that_does_not_end_fails_readiness_and_not_liveness(artifact: Path) -> None:
    async with served(artifact, decode_threads=2, request_timeout_s=0.05) as running:
        decoding, gates, begun = running.service.pipeline.decoding, [], threading.Semaphore(0)

        def held(gate: threading.Event, _: MemoryReservation) -> bool:
            begun.release()
            return gate.wait(LIMIT_S)

        async def hold() -> asyncio.Task[bool]:
            gates.append(threading.Event())
            task = asyncio.create_task(decoding.run(partial(held, gates[-1])))
            await asyncio.to_thread(begun.acquire)
            await asyncio.to_thread(threading.Event().wait, 0.06)
            return task

        first = await hold()
        assert (await running.client.get("/health/ready")).status_code == 200  # one is free
        second = await hold()
        ready = await running.client.get("/health/ready")
        assert ready.status_code == 503
        assert "request_timeout_s is 0.05" in ready.json()["detail"]
        assert (await running.client.post("/detect", content=IMAGE)).status_code == 503
        assert (await running.client.get("/health")).json()["status"] == "hung"
        assert (await running.client.get("/health/live")).status_code == 200
        gates[0].set()
        assert await first
        assert (await running.client.get("/health/ready")).status_code == 200
        gates[1].set()
        assert await second
