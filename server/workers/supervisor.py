"""Starts the HTTP workers, passes connections to them, and restarts those that die."""

import asyncio
import socket
import sys
from collections import deque
from contextlib import suppress
from dataclasses import dataclass

from server.errors import DeploymentError
from server.host import available_cpus
from server.http.server import MAX_CONNECTIONS
from server.observability.logs import get_logger
from server.serving.decode_pool import body_share
from server.settings import Settings
from server.workers.connection_passing import ConnectionDispatcher, passing_sockets
from server.workers.coordinator import Coordinator
from server.workers.messages import Init
from server.workers.worker_connection import WorkerConnection

# A worker that dies more often than this in so many seconds shows a fault that stays.
MAX_CRASHES, CRASHES_S = 5, 60.0
BACKOFF_S = 0.5  # before the second start in that time; doubled with each
MIN_CONNECTIONS = 64

logger = get_logger(__name__)


class CrashLoop(Exception):
    """HTTP workers die as often as they are started."""


@dataclass(frozen=True)
class Shares:
    """What each worker has of what the settings give to all of them.

    Attributes:
        memory_bytes: that it may use.
        inflight_body_bytes: for bodies; enough for one.
        decode_threads: at least one.
        connections: at least `MIN_CONNECTIONS`.
    """

    memory_bytes: int
    inflight_body_bytes: int
    decode_threads: int
    connections: int


def shares(settings: Settings, memory_bytes: int, cpus: int) -> Shares:
    """Divides what there is by `http_workers`, each part rounded up.

    Args:
        settings: of the whole server.
        memory_bytes: that the whole server may use.
        cpus: that it may use, >= 1.
    """
    workers = settings.http_workers
    inflight_body_bytes = settings.max_inflight_body_bytes or body_share(memory_bytes)
    return Shares(
        memory_bytes // workers,
        max(settings.max_body_bytes, -(-inflight_body_bytes // workers)),
        -(-(settings.decode_threads or cpus) // workers),
        max(MIN_CONNECTIONS, -(-MAX_CONNECTIONS // workers)),
    )


class Supervisor:
    """Starts all HTTP worker processes, and restarts those that die.

    Args:
        coordinator: what they connect to.
        dispatcher: where their connections come from.
        memory_bytes: that the whole server may use.
    """

    def __init__(
        self, coordinator: Coordinator, dispatcher: ConnectionDispatcher, memory_bytes: int
    ) -> None:
        self._coordinator = coordinator
        self._dispatcher = dispatcher
        self._shares = shares(coordinator.settings, memory_bytes, available_cpus())
        self._settings = coordinator.settings.model_dump(
            mode="json", exclude={"api_keys", "api_keys_file"}
        ) | {
            "decode_threads": self._shares.decode_threads,
            "max_inflight_body_bytes": self._shares.inflight_body_bytes,
        }
        self._processes: set[asyncio.subprocess.Process] = set()

    async def run(self) -> None:
        """Keeps them running until the coordinator is ending, and then until all have ended.

        A worker that does not live, or can't start as the server was deployed, is a fault of the
        coordinator, which ends with a drain: its siblings answer what they have accepted.
        """
        async with asyncio.TaskGroup() as group:
            for number in range(1, self._coordinator.settings.http_workers + 1):
                group.create_task(self._keep(f"http-{number}"))

    def kill(self) -> None:
        """Ends all at once."""
        for process in self._processes:
            _kill(process)

    async def _keep(self, name: str) -> None:
        try:
            await self._start_anew(name)
        except Exception as error:  # in the task group, it would kill the siblings
            self._coordinator.fail(error)

    async def _start_anew(self, name: str) -> None:
        """One process after the other.

        Raises:
            CrashLoop: they don't live.
            DeploymentError: they can't start as the server was deployed.
        """
        crashes: deque[float] = deque()
        loop = asyncio.get_running_loop()
        ending = self._coordinator.ending
        while not ending.is_set():
            try:
                await self._live(name)
            except OSError as error:  # no process, file or memory is left: the others go on
                logger.error("http_worker_not_started", name=name, reason=str(error))
            if ending.is_set():
                return
            self._coordinator.metrics.worker_restarts.inc()
            crashes.append(loop.time())
            while crashes[0] < loop.time() - CRASHES_S:
                crashes.popleft()
            if len(crashes) > MAX_CRASHES:
                raise CrashLoop(f"{name} died {len(crashes)} times in {CRASHES_S:g} s")
            if len(crashes) > 1:
                with suppress(TimeoutError):
                    async with asyncio.timeout(BACKOFF_S * 2 ** (len(crashes) - 2)):
                        await ending.wait()

    async def _live(self, name: str) -> None:
        """One process, from its start to its end."""
        control, their_control = socket.socketpair()
        receiver, their_receiver = passing_sockets()
        memory = self._coordinator.slots.shared.file
        with control, receiver:
            with their_control, their_receiver:
                files = their_control.fileno(), their_receiver.fileno(), memory
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    *(["-P"] if sys.flags.safe_path else []),
                    "-m",
                    "server.workers",
                    *map(str, files),
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=files,
                    # A terminal's Ctrl-C is for the engine process, which tells them.
                    start_new_session=True,
                )
            self._processes.add(process)
            worker = WorkerConnection(
                name,
                self._coordinator,
                on_ready=lambda: self._dispatcher.add(receiver),
                on_unresponsive=lambda: self._dispatcher.remove(receiver),
                kill=lambda: _kill(process),
            )
            try:
                control.setblocking(False)
                loop = asyncio.get_running_loop()
                await loop.create_unix_connection(lambda: worker.channel, sock=control)
                worker.send(self._init_message(name))
                self._coordinator.connected(worker)
                logger.info("http_worker_started", name=name, pid=process.pid)
                code = await process.wait()
            finally:
                worker.end()
                self._processes.discard(process)
        if worker.startup_failure is not None:
            raise DeploymentError(worker.startup_failure)
        log = logger.info if self._coordinator.ending.is_set() else logger.error
        log("http_worker_ended", name=name, pid=process.pid, exit_code=code)

    def _init_message(self, name: str) -> Init:
        return Init(
            name,
            self._settings,
            self._coordinator.model.name,
            self._shares.memory_bytes,
            self._shares.connections,
            self._coordinator.key_digests,
        )


def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()
