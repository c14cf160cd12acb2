"""Puts the server together: one service, the endpoints of it, and what surrounds every request."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI
from fastapi.routing import APIRoute
from starlette.middleware.cors import CORSMiddleware

from server.api import deepstack, detect, openapi, operations, ui
from server.api.kserve import routes as kserve
from server.api.ui import read_samples
from server.host import available_bytes
from server.http.auth import Keys, key_schemes
from server.http.errors import install_error_handlers, rejection_reasons
from server.http.middleware import DETECTION, EarlyRefusal, RequestScope
from server.http.state import AppState, check_key, require_key
from server.inference.artifact import Artifact
from server.inference.engine import Engine
from server.observability.gpu_metrics import open_nvml, register_gpu_metrics
from server.observability.logs import get_logger
from server.observability.metrics import Metrics
from server.observability.tracing import open_tracing
from server.serving.body_budget import ByteBudget
from server.serving.decode_pool import body_share
from server.serving.interface import Model
from server.serving.local_model import Loader, LocalModel
from server.serving.service import Service
from server.settings import Settings

logger = get_logger(__name__)


def create_app(
    settings: Settings,
    *,
    loader: Loader | None = None,
    open_engine: Callable[[Sequence[Artifact], Settings], Engine] | None = None,
    open_model: Callable[[Metrics], Model] | None = None,
    keys: Keys | None = None,
    memory_bytes: int | None = None,
    on_failure: Callable[[], None] = lambda: None,
) -> FastAPI:
    """Builds the app around one model, which is loaded meanwhile.

    Args:
        settings: checked settings.
        loader: loads the model that they name; by default one that begins now.
        open_engine: what such a one opens the model with; ONNX Runtime by default.
        open_model: connects to a model in another process, in place of both.
        keys: who may ask; by default those of the settings.
        memory_bytes: what the process may use; by default what its control groups, or else the
            machine, leave it.
        on_failure: called once when the service can't go on, and the process should end;
            `service.model.failure` says why.

    Raises:
        ArtifactInvalid: the model is not one that this server can serve.
        SettingsInvalid: the file of keys can't be read, or traces can't be sent.
    """
    keys = keys or Keys(settings.api_keys, settings.api_keys_file)
    tracing = open_tracing(settings.otlp_endpoint)
    memory_bytes = memory_bytes or available_bytes()
    unset_bytes = max(settings.max_body_bytes, body_share(memory_bytes))
    body_budget = ByteBudget(settings.max_inflight_body_bytes or unset_bytes)
    metrics = Metrics(sorted(rejection_reasons()))
    model: Model
    if open_model is not None:
        model = open_model(metrics)
    else:
        model = LocalModel(settings, loader or Loader(settings, open_engine), metrics)
        register_gpu_metrics(metrics.registry, open_nvml())
    service = Service(
        settings,
        model,
        metrics,
        on_failure=on_failure,
        body_budget=body_budget,
        memory_bytes=memory_bytes,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    async def reload() -> None:
        await model.reload(read_keys)

    def read_keys() -> None:
        keys.reload()
        logger.info("keys_read", keys=keys.count)

    app = FastAPI(
        title="yolov8-fla",
        summary="Images in, boxes out.",
        version="1",  # of the interface, not of the model
        lifespan=lifespan,
        redirect_slashes=False,
        servers=[{"url": "."}],  # beside the document, also behind a proxy with a prefix
        openapi_url=None,  # `server.api.openapi` has it
        docs_url=None,  # `server.api.ui` has one that needs no other host
        redoc_url=None,
        # FastAPI's own sends queries and errors' texts, and knows no stages:
        # `server.observability.tracing`.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.server = AppState(service, keys, reload, tracing)
    schemes = [Depends(scheme) for scheme in key_schemes()] if keys.configured else []
    guards = [*schemes, Depends(check_key)]
    strict_guards = [*schemes, Depends(require_key)]
    routers = [
        detect.routes(guards),
        operations.routes(guards, strict_guards),
        ui.routes(app.title, read_samples(settings.model), guards),
        openapi.routes(app.openapi, service.pipeline.on_thread),
        kserve.routes(model.name, guards),
        deepstack.routes(schemes),
    ]
    for router in routers:
        app.include_router(router)
    install_error_handlers(app, service)
    # From the inside out.
    app.add_middleware(
        EarlyRefusal,
        service=service,
        routes={
            route.path_regex: route.path
            for router in routers
            for route in router.routes
            if isinstance(route, APIRoute) and DETECTION in route.tags
        },
    )
    if settings.cors_origins:  # pages of other origins may call the server
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "X-API-Key", "X-Request-ID", "traceparent"],
            expose_headers=["Retry-After", "Server-Timing", "X-Request-ID"],
        )
    app.add_middleware(RequestScope, service=service, tracing=tracing)
    return app
