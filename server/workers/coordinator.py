"""The model process' side: one queue for all fronts, and one state that all of them have."""

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
from server.serving.local_model import OwnModel
from server.settings import Settings
from server.workers.messages import Measured, Ping, Sample, Told
from server.workers.remote_engine import described
from server.workers.shared_memory import Room, Slots
from server.workers.worker_connection import FrontLink

BEAT_S = 1.0
SILENT_BEATS = 30  # a front that has not answered for so long is ended
START_BEATS = 120  # the same for one that is still starting
SAMPLE_BEATS = 5  # between two times that fronts tell their metrics, so that they outlive them
MAX_UNSENT_BYTES = 64 * 2**20  # to one front
HEARD_S = 5.0  # for which a reload waits until all fronts know of it
MEASURE_S = 2.0  # for which a scrape waits for a front
SLOTS_A_FRONT = 8  # images that were inferred, and are still to be copied there

logger = get_logger(__name__)


class Hub:
    """What the fronts talk to.

    Args:
        settings: limits.
        model: in this process.
        metrics: of this process.
        keys: of all processes.

    Attributes:
        model, metrics: as given.
        slots: of the shared memory.
        links: the fronts that are connected.
        ending: set when the server is to end: it drains, or has failed.
        fault: why it ends, where that is neither a signal nor the model.
    """

    def __init__(self, settings: Settings, model: OwnModel, metrics: Metrics, keys: Keys) -> None:
        self.settings = settings
        self.model = model
        self.metrics = metrics
        self.slots = Slots()
        self.links: set[FrontLink] = set()
        self.ending = asyncio.Event()
        self.fault: BaseException | None = None
        self._keys = keys
        self._number = 0
        self._told: Told | None = None
        self._engines: dict[int, tuple[Engine, set[FrontLink]]] = {}
        self._generation = 0
        self._retired: Snapshot = []  # what fronts counted that have ended
        self._measuring: asyncio.Task[tuple[Snapshot, list[Snapshot]]] | None = None
        self._heard = asyncio.Event()
        self._to_publish = False
        model.changed = self.tell
        model.prepare = self._make_room
        model.queue.noted = self.publish_soon
        metrics.http_workers.set_function(
            lambda: sum(each.up and not each.quiet for each in list(self.links))
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
        """A model that some front still has.

        Raises:
            KeyError: none has.
        """
        return self._engines[generation][0]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keeps the board fresh, and an eye on the fronts."""
        beating = asyncio.create_task(self._keep_beating())
        try:
            yield
        finally:
            beating.cancel()
            await asyncio.wait([beating])

    def fail(self, error: BaseException) -> None:
        """Ends the server because of a fault beside the model.

        The model works, so it drains: what the fronts have accepted is answered.
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
        """Writes on the board what has changed, once in a turn of the event loop."""
        if not self._to_publish:
            self._to_publish = True
            asyncio.get_running_loop().call_soon(self.publish)

    def publish(self) -> None:
        """Writes on the board what has changed."""
        self._to_publish = False
        queue = self.model.queue
        self.slots.shared.board.write(
            queue_images=queue.queue_images,
            retry_after_s=queue.retry_after_s(),
            instances=queue.instances,
            busy=queue.active_inferences,
            oldest_call=queue.oldest_call(),
        )

    def tell(self) -> None:
        """Tells all fronts the state."""
        engine = self.model.engine
        known = self._engines.get(self._generation)
        if engine is not None and (known is None or known[0] is not engine):
            self._forget_unless_held(self._generation)
            self._generation += 1
            self._engines[self._generation] = (engine, set())
        self._number += 1
        failure = self.model.failure
        self._told = Told(
            self._number,
            self.state,
            str(failure) if isinstance(failure, DeploymentError) else None,
            described(self._generation, engine) if engine is not None else None,
            (resident_bytes() + self.slots.shared.size) // self.settings.http_workers,
            self.key_digests,
        )
        for link in self.links:
            self._tell_one(link)
        if self.state in ("draining", "failed"):
            self.ending.set()

    def connected(self, link: FrontLink) -> None:
        """A front is there."""
        self.links.add(link)
        if self._told is None:
            self.tell()
        else:
            self._tell_one(link)

    def lost(self, link: FrontLink) -> None:
        """A front is gone, with its requests."""
        if link in self.links:
            self.links.discard(link)
            self._retired = _sum([self._retired, counted(link.sampled)])
            for generation in [*self._engines]:
                self.dropped(link, generation)
            self.publish()
            self._heard.set()
            self.metrics_came(link)

    def heard(self, link: FrontLink, number: int) -> None:
        """A front has taken over what it was told."""
        link.heard = number
        self._heard.set()

    def dropped(self, link: FrontLink, generation: int) -> None:
        """A front has no request with a model any more."""
        if generation in self._engines:
            self._engines[generation][1].discard(link)
            if generation != self._generation:
                self._forget_unless_held(generation)

    async def reload(self) -> None:
        """Serves the model and the keys as they are now, in all fronts; as `OwnModel.reload`."""
        try:
            await self.model.reload(self._read_keys)
        finally:
            self.tell()  # keys hold also where the model does not
        with suppress(TimeoutError):
            async with asyncio.timeout(HEARD_S):
                await self._all_heard(self._number)

    async def measure(self, link: FrontLink, request: int) -> None:
        """Answers a front with the metrics of all; those that ask meanwhile get the same."""
        if self._measuring is None or self._measuring.done():
            self._measuring = asyncio.create_task(self._measure())
        try:
            own, fronts = await asyncio.shield(self._measuring)
        except Exception:  # a fault of our own: whoever asked must hear of it
            logger.exception("metrics_broken")
            own, fronts = [], []
        link.send(Measured(request, own, fronts))

    def metrics_came(self, link: FrontLink) -> None:
        """A front has answered `Sample`, or will not."""
        link.sample_due.set()

    async def _measure(self) -> tuple[Snapshot, list[Snapshot]]:
        asked = [link for link in self.links if link.up and not link.quiet]
        for link in asked:
            link.sample_due.clear()
            link.send(Sample(0))
        with suppress(TimeoutError):  # then with what it said last
            async with asyncio.timeout(MEASURE_S):
                for link in asked:
                    await link.sample_due.wait()
        loop = asyncio.get_running_loop()
        own = await loop.run_in_executor(None, snapshot, self.metrics.registry)
        return own, [self._retired, *(link.sampled for link in self.links)]

    async def _all_heard(self, number: int) -> None:
        while any(link.up and link.heard < number for link in self.links):
            self._heard.clear()
            await self._heard.wait()

    def _tell_one(self, link: FrontLink) -> None:
        assert self._told is not None
        if self._generation:
            self._engines[self._generation][1].add(link)
        link.send(self._told)

    def _forget_unless_held(self, generation: int) -> None:
        if generation in self._engines and not self._engines[generation][1]:
            del self._engines[generation]

    def _make_room(self, engine: Engine) -> None:
        metadata = engine.artifact.metadata
        pixel_bytes = max(3 * height * width for height, width in metadata.buckets)
        in_calls = engine.instances * engine.max_batch_size
        self.slots.fit(
            Room(pixel_bytes, metadata.max_candidates),
            # Those that run, and as many again whose clients have left.
            self.settings.max_queue_images
            + 2 * in_calls
            + SLOTS_A_FRONT * self.settings.http_workers,
        )

    def _read_keys(self) -> None:
        self._keys.reload()
        logger.info("keys_read", keys=self._keys.count)

    async def _keep_beating(self) -> None:
        try:
            await self._beat()
        except Exception as error:  # without it, a front that hangs would not be noticed
            self.fail(error)

    async def _beat(self) -> None:
        beats = 0
        while True:
            await asyncio.sleep(BEAT_S)
            beats += 1
            self.publish()
            asked, self._number = self._number, self._number + 1
            for link in [*self.links]:
                link.beat(asked)
                link.send(Ping(self._number))
                if beats % SAMPLE_BEATS == 0 and link.up and not link.quiet:
                    link.send(Sample(0))
                unsent_bytes = link.line.unsent_bytes
                allowed = SILENT_BEATS if link.up else START_BEATS
                if link.silent_beats > allowed or unsent_bytes > MAX_UNSENT_BYTES:
                    logger.error(
                        "http_worker_unresponsive", name=link.name, unsent_bytes=unsent_bytes
                    )
                    link.end()


def _sum(parts: Iterable[Snapshot]) -> Snapshot:
    """Of counters and histograms of processes, the sum."""
    own, *others = [part for part in parts if part] or [[]]
    return merged(own, others)
