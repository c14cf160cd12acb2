"""The engine process: it has the port and the model, and runs the workers that answer."""

import asyncio
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import uvloop

from server.errors import SettingsInvalid
from server.host import available_bytes
from server.http.auth import Keys
from server.http.errors import rejection_reasons
from server.http.server import LAST_RESORT_S, listen, reloading_at_sighup
from server.observability.gpu_metrics import open_nvml, register_gpu_metrics
from server.observability.logs import get_logger
from server.observability.metrics import Metrics
from server.run import exit_code, log_listening, spare_the_collector
from server.serving.body_budget import ByteBudget
from server.serving.interface import server_status
from server.serving.local_model import Loader, LocalModel
from server.settings import Settings
from server.workers.connection_passing import ConnectionDispatcher
from server.workers.coordinator import Coordinator
from server.workers.supervisor import Supervisor

# Workers end by themselves when the drain time is over and their last answers are fetched, for
# which a client has a second. Then they are killed, so that all is over by `LAST_RESORT_S`.
GRACE_S = LAST_RESORT_S - 0.5

NO_BODIES = ByteBudget(0)  # which are the workers'

logger = get_logger(__name__)


def serve_with_workers(settings: Settings, loader: Loader) -> int:
    """Runs the server with `http_workers` workers until a signal comes, or it can't go on.

    Args:
        settings: checked.
        loader: loads the model, and loads it again when it is told to.

    Returns:
        The exit code.

    Raises:
        DeploymentError: it can't start as it was deployed.
    """
    if sys.platform != "linux":
        raise SettingsInvalid("http_workers over 1 needs Linux: its memory without a file (memfd)")
    keys = Keys(settings.api_keys, settings.api_keys_file)
    metrics = Metrics(sorted(rejection_reasons()))
    model = LocalModel(settings, loader, metrics)
    metrics.observe(lambda: server_status(model.status, model.queue.status(), settings, NO_BODIES))
    register_gpu_metrics(metrics.registry, open_nvml())
    with listen(settings.host, settings.port) as listener:
        spare_the_collector()
        log_listening(listener, settings)
        coordinator = Coordinator(settings, model, metrics, keys)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(coordinator, ConnectionDispatcher(listener)))
    return exit_code(model.failure or coordinator.fault)


async def _run(coordinator: Coordinator, dispatcher: ConnectionDispatcher) -> None:
    model, drain_timeout_s = coordinator.model, coordinator.settings.drain_timeout_s
    supervisor = Supervisor(coordinator, dispatcher, available_bytes())
    now = asyncio.Event()  # a second Ctrl-C
    loop = asyncio.get_running_loop()

    def hang_up(*_: object) -> None:
        # A signal comes in the middle of anything the event loop does, and does not wake it.
        loop.call_soon_threadsafe(model.begin_drain)

    async with coordinator.running(), model.running():
        keeping = asyncio.create_task(supervisor.run())
        with _leaving(coordinator, now), reloading_at_sighup(coordinator.reload, hang_up):
            await coordinator.ending.wait()
            dispatcher.close()
            waiting = [keeping, asyncio.create_task(now.wait())]
            await asyncio.wait(
                waiting,
                timeout=drain_timeout_s + GRACE_S,
                return_when=asyncio.FIRST_COMPLETED,
            )
            waiting[1].cancel()
        supervisor.kill()
        await asyncio.wait([keeping])
    coordinator.slots.close()


@contextmanager
def _leaving(coordinator: Coordinator, now: asyncio.Event) -> Iterator[None]:
    """Drains at SIGTERM and SIGINT; a second Ctrl-C ends it at once."""
    loop = asyncio.get_running_loop()

    def leave(sig: int) -> None:
        if coordinator.ending.is_set():
            logger.info("signal_while_draining")
            if sig == signal.SIGINT:
                now.set()
        coordinator.model.begin_drain()

    def handle(sig: int, _: object) -> None:
        loop.call_soon_threadsafe(leave, sig)  # as in `hang_up`

    # Not the loop's handlers: between theirs and those of before a signal would end the process.
    before = {each: signal.signal(each, handle) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
