"""One replica: the whole app of `server` around its own model, on the share that Ray gives it."""

import asyncio
import math
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

import cv2
import ray
from fastapi import FastAPI
from ray import serve
from starlette.types import ASGIApp, Receive, Scope, Send

from server.api.app import create_app
from server.errors import ReloadFailed, ServerError, SettingsInvalid
from server.http.state import state_of
from server.observability.logs import configure_logging, get_logger
from server.ray.memory_share import memory_share
from server.ray.serve.all_replicas import AllReplicas
from server.serving.local_model import open_onnx_engine
from server.settings import Settings
from server.vision.decode import quiet_codecs

LOOK_S = 0.05  # how often a replica that starts looks whether its model is loaded

logger = get_logger(__name__)


@serve.ingress()  # the app is made where the replica runs
class Replica:
    """What Ray Serve makes, asks for its health, and ends.

    Args:
        settings: checked; `host`, `port` and `header_timeout_s` are of no effect here.

    Raises:
        DeploymentError: the model can't be served with them on this node.
    """

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]  # Serve awaits it
        configure_logging(settings.log_format)
        cv2.setNumThreads(1)  # images are decoded side by side, one thread each
        quiet_codecs()
        context: Any = ray.get_runtime_context()
        share = context.get_assigned_resources()
        refuse_without_gpu(settings.device, share.get("GPU", 0))
        # Not those of the whole machine: other replicas count them, too.
        cpus = max(1, math.ceil(share.get("CPU", 1)))
        settings = settings.model_copy(update={"decode_threads": settings.decode_threads or cpus})

        memory_bytes = memory_share(cpus, share.get("GPU", 0))
        self._api: FastAPI = create_app(
            settings,
            open_engine=partial(open_onnx_engine, cpus=cpus),
            memory_bytes=memory_bytes,
        )
        self._state = state_of(self._api)
        self._service = self._state.service
        self._life: AbstractAsyncContextManager[Any] = self._api.router.lifespan_context(self._api)
        await self._life.__aenter__()
        # Serve sends requests to a replica when its constructor is done.
        while self._service.model.state == "starting":  # noqa: ASYNC110  # it has no event
            await asyncio.sleep(LOOK_S)
        if self._service.model.failure is not None:
            await self._life.__aexit__(None, None, None)
            raise self._service.model.failure
        self._all = AllReplicas()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """The app as Serve calls it: begun already, and ended when Serve ends it."""
        api = self._all.around(self._api)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "lifespan":
                await api(scope, receive, send)
                return
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await self._life.__aexit__(None, None, None)
            await send({"type": "lifespan.shutdown.complete"})

        return app

    def check_health(self) -> None:
        """Raises `NotReady` when only a new replica can help; Serve then makes one."""
        self._service.refuse_unless_alive()

    async def exposition(self) -> tuple[str, str]:
        """This replica's name and its metrics; one of them asks all others when it is scraped."""
        content = await self._service.exposition()
        return self._all.own_name, content.decode()

    async def follow_reload(self, leader: str) -> str | None:
        """Loads the model files and keys anew, as replica `leader` did; why not, if it can't."""
        if leader == self._all.own_name:
            return None
        try:
            await self._state.reload()
        except ReloadFailed as error:
            return f"replica {self._all.own_name}: {error}"
        except ServerError as error:  # not ready: it will load them by itself
            logger.warning("reload_not_followed", reason=str(error))
        return None


def refuse_without_gpu(device: str, gpus: float) -> None:
    """Raises `SettingsInvalid` for a GPU that Ray did not give, or one that has another number."""
    if device not in ("auto", "cpu") and not gpus:
        raise SettingsInvalid(
            f"device is {device}, and the replica has no GPU of Ray's: give it one, "
            "ray_actor_options: {num_gpus: 1}, or a share, such as 0.5"
        )
    if device.startswith("cuda:"):
        raise SettingsInvalid(f"device is {device}; Ray chooses the GPU, so say cuda")
