"""One loaded model: a file chosen for a device, and the sessions that run it.

On a CPU, calls with one thread each side by side bring the most images a second (of a blood cell
detector at 480 x 480 on two CPUs 39, and 78 in int8; one call with both threads 29 and 50), and
batches bring none. A sole request wants all threads (30 ms instead of 51; int8 18 instead of 25).
So there are two sessions: one for each. A GPU runs one call at a time, in batches.

On many CPUs with few clients, one thread a call leaves CPUs idle and answers later than it could:
there `intra_op_threads` should be about the CPUs divided by the requests at the same time.
"""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from server.errors import ArtifactInvalid, InferenceFailed, SessionLost
from server.host import available_cpus
from server.inference.artifact import Artifact
from server.inference.cuda.options import GPU_BATCH_SIZE
from server.inference.devices import open_on_first
from server.inference.repository import select_variant
from server.inference.session import Session
from server.vision.letterbox import PAD_VALUE

# After so many sole calls in a row that had better had fewer threads, so many have them.
SLOW_IN_A_ROW, WITH_FEWER = 3, 32


class OpenSession(Protocol):
    """What an engine needs of `server.inference.session.Session`."""

    @property
    def provider(self) -> str:
        """The execution provider that really runs."""

    @property
    def device(self) -> str:
        """The device that really runs."""

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(B, H, W, 3) uint8 RGB to (B, K, 6) float32."""

    def warm_up(self, batch_sizes: Sequence[int]) -> None:
        """Runs every shape that will come once."""


class SessionPool:
    """Sessions of one model as one: calls at the same time have a session each.

    Calls that shared a session would share its threads: eight calls of eight threads each would
    run on 15 and not on 64.

    Args:
        sessions: alike, at least one; a call waits while all of them run.

    Attributes:
        provider, device: where they run.
    """

    def __init__(self, sessions: Sequence[OpenSession]) -> None:
        self.provider = sessions[0].provider
        self.device = sessions[0].device
        self._sessions = sessions
        self._idle: SimpleQueue[OpenSession] = SimpleQueue()
        for session in sessions:
            self._idle.put(session)

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """As a session does."""
        session = self._idle.get()
        try:
            return session.run(images)
        finally:
            self._idle.put(session)

    def warm_up(self, batch_sizes: Sequence[int]) -> None:
        """As a session does, with each of them."""
        for session in self._sessions:
            session.warm_up(batch_sizes)


class AdaptiveThreading:
    """Whether a sole call should have all threads: while that is faster than fewer.

    Threads that wait for each other are slow where other processes want the CPUs: with six of them
    on two CPUs an int8 call took 230 ms on both, and 65 on one. One sole call follows the other.
    """

    def __init__(self) -> None:
        self._fewer_pace = math.inf  # moving average
        self._slow_in_a_row = 0
        self._with_fewer = 0  # calls to come

    @property
    def all_threads(self) -> bool:
        """Whether the next one should."""
        return self._with_fewer == 0

    def note(self, pace: float, *, all_threads: bool) -> None:
        """Learns from a call: the seconds it took a pixel."""
        if not all_threads:
            known = self._fewer_pace < math.inf
            self._fewer_pace = 0.8 * self._fewer_pace + 0.2 * pace if known else pace
            self._with_fewer = max(0, self._with_fewer - 1)
            return
        slow = pace > self._fewer_pace
        self._slow_in_a_row = self._slow_in_a_row + 1 if slow else 0
        if self._slow_in_a_row >= SLOW_IN_A_ROW:
            self._with_fewer = WITH_FEWER


class Engine:
    """A model that is loaded and, after `warm_up`, ready. Released with its last reference.

    Args:
        artifact: what is loaded.
        reason: why this file, in words.
        session: runs batches, up to `instances` of them at the same time.
        latency_session: runs a batch beside which nothing else runs; by default `session`.
        instances: inferences that may run side by side, >= 1.
        max_batch_size: images of one call, >= 1.

    Attributes:
        provider, device: where the model really runs.
        cpu_fallback: in words, why on the CPU though a GPU was to be expected; else None.
    """

    def __init__(
        self,
        artifact: Artifact,
        reason: str,
        session: OpenSession,
        *,
        latency_session: OpenSession | None = None,
        instances: int = 1,
        max_batch_size: int = 1,
    ) -> None:
        self.artifact = artifact
        self.reason = reason
        self.instances = instances
        self.max_batch_size = max_batch_size
        self.provider = session.provider
        self.device = session.device
        self._session = session
        self._latency_session = latency_session or session
        self.cpu_fallback: str | None = None
        self._adaptive_threading = AdaptiveThreading()

    @staticmethod
    def open(
        artifacts: Sequence[Artifact],
        *,
        device: str = "auto",
        precision: str = "auto",
        intra_op_threads: int | None = None,
        max_batch_size: int | None = None,
        cpus: int | None = None,
        cuda_graphs: bool = False,
        tensorrt_cache: Path | None = None,
    ) -> "Engine":
        """Loads the best of some files of one model on the first device that works.

        Args:
            artifacts: one model in one or several precisions.
            device: as `server.inference.devices.devices_to_try` takes it.
            precision: "fp32", "fp16", "int8", or "auto": the best for the device.
            intra_op_threads: CPU threads of every call, >= 1; by default all for a sole call and
                one where several run.
            max_batch_size: images of one call, >= 1; by default 8 on a GPU and 1 on a CPU.
            cpus: that calls share, >= 1; by default those that affinity and quota leave.
            cuda_graphs: as `Session.open` takes it.
            tensorrt_cache: as `Session.open` takes it.

        Raises:
            ArtifactInvalid: no file has that precision, or ONNX Runtime cannot load it.
            ProviderUnavailable: the model does not run on the device that was asked for.
            SettingsInvalid: there is no such device name, or the cache cannot be written.
        """
        all_cpus = cpus or available_cpus()

        def open_on(one: str) -> Engine:
            artifact, reason = select_variant(artifacts, one, precision)
            if one != "cpu":
                size = max_batch_size or GPU_BATCH_SIZE
                on_gpu = Session.open(
                    artifact,
                    device=one,
                    threads=intra_op_threads or all_cpus,
                    max_batch_size=size,
                    cuda_graphs=cuda_graphs,
                    tensorrt_cache=tensorrt_cache,
                )
                return Engine(artifact, reason, on_gpu, max_batch_size=size)
            threads = intra_op_threads or 1
            instances = max(1, all_cpus // threads)
            sessions = [
                Session.open(artifact, device=one, threads=threads)
                for _ in range(instances if threads > 1 else 1)
            ]
            latency = None
            if intra_op_threads is None and all_cpus > 1:
                latency = Session.open(artifact, device=one, threads=all_cpus, spinning=True)
            return Engine(
                artifact,
                reason,
                sessions[0] if len(sessions) == 1 else SessionPool(sessions),
                latency_session=latency,
                instances=instances,
                max_batch_size=max_batch_size or 1,
            )

        engine, cpu_fallback = open_on_first(device, open_on)
        engine.cpu_fallback = cpu_fallback
        return engine

    def warm_up(self) -> None:
        """Runs every shape that will come, so that no request meets a new one.

        Raises:
            ArtifactInvalid: the model can't run them.
        """
        try:
            self._session.warm_up(range(1, self.max_batch_size + 1))
            if self._latency_session is not self._session:
                self._warm_up_latency_session()
        except InferenceFailed as error:
            reason = error.__cause__ or error
            raise ArtifactInvalid(f"{self.artifact.path}: the warm-up failed: {reason}") from error

    def run(self, images: NDArray[np.uint8], *, sole: bool = False) -> NDArray[np.float32]:
        """Infers one batch.

        Args:
            images: (B, H, W, 3) uint8, RGB, letterboxed; (H, W) one of the artifact's buckets.
            sole: nothing else runs or is about to, so that the call may have all CPUs; never
                two at the same time.

        Returns:
            (B, K, 6) float32, best first: x1, y1, x2, y2 in input pixels, score, class id.

        Raises:
            InferenceFailed: the batch failed.
            SessionLost: it failed, and so does what ran at the warm-up: a CUDA context that met
                an illegal access or a driver reset never recovers in its process.
        """
        all_threads = sole and self._adaptive_threading.all_threads
        session = self._latency_session if all_threads else self._session
        try:
            candidates, pace = _timed(session, images)
        except InferenceFailed as failed:
            try:
                session.warm_up([1])
            except InferenceFailed:
                message = f"the session on {self.device} is lost: {failed.__cause__ or failed}"
                raise SessionLost(message) from failed
            raise
        if sole:
            self._adaptive_threading.note(pace, all_threads=all_threads)
        return candidates

    def _warm_up_latency_session(self) -> None:
        """After the other session, which has shown that the model runs every shape."""
        shapes = sorted(self.artifact.metadata.buckets, key=math.prod)
        smallest, largest = (
            np.full((1, *shape, 3), PAD_VALUE, np.uint8) for shape in (shapes[0], shapes[-1])
        )
        self._latency_session.run(largest)  # threads, and memory for all shapes
        pace = min(_timed(self._session, smallest)[1] for _ in range(3))
        self._adaptive_threading.note(pace, all_threads=False)


def _timed(session: OpenSession, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], float]:
    """What a session answers, and the seconds it took a pixel."""
    started = time.perf_counter()
    candidates = session.run(images)
    return candidates, (time.perf_counter() - started) / images.size
