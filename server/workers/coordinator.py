"""The engine process' side: one queue for all workers, and one state that all of them have."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress

from server.errors import DeploymentError
from server.host import resident_bytes
from server.http.auth import Keys
from server.inference.engine import Engine
from server.observability.logs import get_logger
from server.observability.metrics import Metrics
from server.observability.metrics_merge import Snapshot, counted, merged, snapshot
from server.serving.interface import State
from server.serving.local_model import LocalModel
from server.settings import Settings
from server.workers.messages import MetricsResponse, Ping, SnapshotRequest, StateUpdate
from server.workers.remote_engine import described
from server.workers.shared_memory import SlotLayout, SlotPool
from server.workers.worker_connection import WorkerConnection

HEARTBEAT_S = 1.0
MAX_MISSED_HEARTBEATS = 30  # a worker that has not answered for so long is ended
MAX_MISSED_AT_START = 120  # the same for one that is still starting
SNAPSHOT_HEARTBEATS = 5  # between two snapshots of workers' metrics, which outlive them
MAX_UNSENT_BYTES = 64 * 2**20  # to one worker
ACK_TIMEOUT_S = 5.0  # for which a reload waits until all workers know of it
SNAPSHOT_TIMEOUT_S = 2.0  # for which a scrape waits for a worker
SLOTS_PER_WORKER = 8  # images that were inferred, and are still to be copied there

logger = get_logger(__name__)


class Coordinator:
    """Connects all workers with the one model: its queue, its state, the metrics of all.

    Args:
        settings: limits.
        model: in this process.
        metrics: of this process.
        keys: of all processes.

    Attributes:
        model, metrics: as given.
        slots: of the shared memory.
        workers: the workers that are connected.
        ending: set when the server is to end: it drains, or has failed.
        fault: why it ends, where that is neither a signal nor the model.
    """

    def __init__(self, settings: Settings, model: LocalModel, metrics: Metrics, keys: Keys) -> None:
        self.settings = settings
        self.model = model
        self.metrics = metrics
        self.slots = SlotPool()
        self.workers: set[WorkerConnection] = set()
        self.ending = asyncio.Event()
        self.fault: BaseException | None = None
        self._keys = keys
        self._number = 0
        self._state_update: StateUpdate | None = None
        self._engines: dict[int, tuple[Engine, set[WorkerConnection]]] = {}
        self._generation = 0
        self._retired: Snapshot = []  # what workers counted that have ended
        self._collecting: asyncio.Task[tuple[Snapshot, list[Snapshot]]] | None = None
        self._acked = asyncio.Event()
        self._to_publish = False
        model.changed = self.publish_state
        model.prepare = self._fit_slots
        model.queue.on_change = self.publish_soon
        metrics.http_workers.set_function(
            lambda: sum(each.ready and not each.unresponsive for each in list(self.workers))
        )
        metrics.shared_slots.set_function(lambda: self.slots.count)
        metrics.busy_shared_slots.set_function(lambda: self.slots.taken)
        self.publish()

    @property
    def state(self) -> State:
        """Of the server."""
        return self.model.state

    @property
    def key_digests(self) -> list[str]:
        """Of the API keys, in hex."""
        return [each.hex() for each in self._keys.digests]

    def engine(self, generation: int) -> Engine:
        """A model that some worker still has.

        Raises:
            KeyError: none has.
        """
        return self._engines[generation][0]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Updates the shared status and watches the workers' heartbeats."""
        watching = asyncio.create_task(self._watch_workers())
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.wait([watching])

    def fail(self, error: BaseException) -> None:
        """Ends the server because of a fault beside the model.

        The model works, so it drains: what the workers have accepted is answered.
        """
        if self.fault is not None:
            return
        self.fault = error
        # A deployment error speaks for itself; anything else needs its traceback.
        expected = isinstance(error, DeploymentError)
        logger.critical("service_failed", reason=str(error), exc_info=None if expected else error)
        try:
            self.model.begin_drain()
        finally:  # whatever the fault has broken, too
            self.ending.set()

    def publish_soon(self) -> None:
        """Writes into the shared status what has changed, once in a turn of the event loop."""
        if not self._to_publish:
            self._to_publish = True
            asyncio.get_running_loop().call_soon(self.publish)

    def publish(self) -> None:
        """Writes into the shared status what has changed."""
        self._to_publish = False
        self.slots.shared.status.write(self.model.queue.status())

    def publish_state(self) -> None:
        """Sends the state to all workers."""
        engine = self.model.engine
        known = self._engines.get(self._generation)
        if engine is not None and (known is None or known[0] is not engine):
            self._forget_unless_held(self._generation)
            self._generation += 1
            self._engines[self._generation] = (engine, set())
        self._number += 1
        failure = self.model.failure
        self._state_update = StateUpdate(
            self._number,
            self.state,
            str(failure) if isinstance(failure, DeploymentError) else None,
            described(self._generation, engine) if engine is not None else None,
            (resident_bytes() + self.slots.shared.size) // self.settings.http_workers,
            self.key_digests,
        )
        for worker in self.workers:
            self._send_state(worker)
        if self.state in ("draining", "failed"):
            self.ending.set()

    def connected(self, worker: WorkerConnection) -> None:
        """A worker is there."""
        self.workers.add(worker)
        if self._state_update is None:
            self.publish_state()
        else:
            self._send_state(worker)

    def lost(self, worker: WorkerConnection) -> None:
        """A worker is gone, with its requests."""
        if worker in self.workers:
            self.workers.discard(worker)
            self._retired = _sum([self._retired, counted(worker.last_snapshot)])
            for generation in [*self._engines]:
                self.model_released(worker, generation)
            self.publish()
            self._acked.set()
            self.on_snapshot(worker)

    def acknowledged(self, worker: WorkerConnection, number: int) -> None:
        """A worker has acknowledged a state update or a ping."""
        worker.acked = number
        self._acked.set()

    def model_released(self, worker: WorkerConnection, generation: int) -> None:
        """A worker has no request with a model any more."""
        if generation in self._engines:
            self._engines[generation][1].discard(worker)
            if generation != self._generation:
                self._forget_unless_held(generation)

    async def reload(self) -> None:
        """Serves the model and the keys as they are now, in all workers; as `LocalModel.reload`."""
        try:
            await self.model.reload(self._read_keys)
        finally:
            self.publish_state()  # keys hold also where the model does not
        with suppress(TimeoutError):
            async with asyncio.timeout(ACK_TIMEOUT_S):
                await self._all_acked(self._number)

    async def send_metrics(self, worker: WorkerConnection, request: int) -> None:
        """Answers a worker with the metrics of all; those that ask meanwhile get the same."""
        if self._collecting is None or self._collecting.done():
            self._collecting = asyncio.create_task(self._collect_metrics())
        try:
            own, workers = await asyncio.shield(self._collecting)
        except Exception:  # a fault of our own: whoever asked must hear of it
            logger.exception("metrics_broken")
            own, workers = [], []
        worker.send(MetricsResponse(request, own, workers))

    def on_snapshot(self, worker: WorkerConnection) -> None:
        """A worker has answered `SnapshotRequest`, or will not."""
        worker.snapshot_received.set()

    async def _collect_metrics(self) -> tuple[Snapshot, list[Snapshot]]:
        ready_workers = [
            worker for worker in self.workers if worker.ready and not worker.unresponsive
        ]
        for worker in ready_workers:
            worker.snapshot_received.clear()
            worker.send(SnapshotRequest(0))
        with suppress(TimeoutError):  # then with what it said last
            async with asyncio.timeout(SNAPSHOT_TIMEOUT_S):
                for worker in ready_workers:
                    await worker.snapshot_received.wait()
        loop = asyncio.get_running_loop()
        own = await loop.run_in_executor(None, snapshot, self.metrics.registry)
        return own, [self._retired, *(worker.last_snapshot for worker in self.workers)]

    async def _all_acked(self, number: int) -> None:
        while any(worker.ready and worker.acked < number for worker in self.workers):
            self._acked.clear()
            await self._acked.wait()

    def _send_state(self, worker: WorkerConnection) -> None:
        assert self._state_update is not None
        if self._generation:
            self._engines[self._generation][1].add(worker)
        worker.send(self._state_update)

    def _forget_unless_held(self, generation: int) -> None:
        if generation in self._engines and not self._engines[generation][1]:
            del self._engines[generation]

    def _fit_slots(self, engine: Engine) -> None:
        metadata = engine.artifact.metadata
        pixel_bytes = max(3 * height * width for height, width in metadata.buckets)
        in_calls = engine.instances * engine.max_batch_size
        self.slots.fit(
            SlotLayout(pixel_bytes, metadata.max_candidates),
            # Those that run, and as many again whose clients have left.
            self.settings.max_queue_images
            + 2 * in_calls
            + SLOTS_PER_WORKER * self.settings.http_workers,
        )

    def _read_keys(self) -> None:
        self._keys.reload()
        logger.info("keys_read", keys=self._keys.count)

    async def _watch_workers(self) -> None:
        try:
            await self._send_heartbeats()
        except Exception as error:  # without it, a worker that hangs would not be noticed
            self.fail(error)

    async def _send_heartbeats(self) -> None:
        heartbeats = 0
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            heartbeats += 1
            self.publish()
            number, self._number = self._number, self._number + 1
            for worker in [*self.workers]:
                worker.heartbeat(number)
                worker.send(Ping(self._number))
                if (
                    heartbeats % SNAPSHOT_HEARTBEATS == 0
                    and worker.ready
                    and not worker.unresponsive
                ):
                    worker.send(SnapshotRequest(0))
                unsent_bytes = worker.channel.unsent_bytes
                allowed = MAX_MISSED_HEARTBEATS if worker.ready else MAX_MISSED_AT_START
                if worker.missed_heartbeats > allowed or unsent_bytes > MAX_UNSENT_BYTES:
                    logger.error(
                        "http_worker_unresponsive", name=worker.name, unsent_bytes=unsent_bytes
                    )
                    worker.end()


def _sum(parts: Iterable[Snapshot]) -> Snapshot:
    """Of counters and histograms of processes, the sum."""
    own, *others = [part for part in parts if part] or [[]]
    return merged(own, others)
