"""What operates the server: health, metrics, the model's description and its reload."""

from collections.abc import Sequence

from fastapi import APIRouter, Request
from fastapi.params import Depends
from starlette.responses import Response

from server.api.openapi import problem_responses
from server.api.schemas import Alive, Health, ModelDescription
from server.http.state import state_of
from server.observability.metrics import CONTENT_TYPE
from server.serving.service import Service
from server.version import this_build


def routes(guards: Sequence[Depends], strict_guards: Sequence[Depends]) -> APIRouter:
    """The routes; `guards` stand before what describes the model, strict ones before a reload."""
    router = APIRouter()
    router.add_api_route(
        "/model", model, responses=problem_responses(401, 503), dependencies=guards
    )
    router.add_api_route(
        "/model/reload",
        reload_model,
        methods=["POST"],
        responses=problem_responses(401, 403, 409, 503),
        dependencies=strict_guards,
    )
    router.add_api_route("/health/live", live, responses=problem_responses(503))
    router.add_api_route("/health/ready", ready, responses=problem_responses(503))
    router.add_api_route("/health", health, responses={503: {"model": Health}})
    router.add_api_route(
        "/metrics", metrics, response_class=Response, responses=problem_responses(503)
    )
    return router


async def model(request: Request) -> ModelDescription:
    """Metadata of the artifact, with its parity certificate."""
    return _described(state_of(request.app).service)


async def reload_model(request: Request) -> ModelDescription:
    """Loads the configured model files and keys anew; until it answers, the old ones serve."""
    state = state_of(request.app)
    await state.reload()
    return _described(state.service)


async def live(request: Request) -> Alive:
    """Whether the process can do its work; if not, it should be restarted."""
    state_of(request.app).service.refuse_unless_alive()
    return Alive(status="live")


async def ready(request: Request) -> Alive:
    """Whether requests are taken now."""
    state_of(request.app).service.refuse_unless_ready()
    return Alive(status="ready")


async def health(request: Request, response: Response) -> Health:
    """State, model and the provider that really runs; 503 unless ready."""
    service = state_of(request.app).service
    status = service.status
    response.status_code = 200 if status == "ready" else 503
    engine = service.model.engine
    return Health(
        status=status,
        server_version=this_build().version,
        revision=this_build().revision,
        model=engine.artifact.metadata.name if engine else service.model.name,
        version=engine.artifact.version if engine else None,
        precision=engine.artifact.metadata.precision if engine else None,
        reason=engine.reason if engine else None,
        provider=engine.provider if engine else None,
        device=engine.device if engine else None,
        cpu_fallback=engine.cpu_fallback if engine else None,
        instances=engine.instances if engine else None,
        max_batch_size=engine.max_batch_size if engine else None,
        queue_images=service.model.queue.status().queue_images,
        max_queue_images=service.settings.max_queue_images,
    )


async def metrics(request: Request) -> Response:
    """Prometheus metrics in the text format; 503 where the process that has them hangs."""
    content = await state_of(request.app).service.exposition()
    return Response(content, media_type=CONTENT_TYPE)


def _described(service: Service) -> ModelDescription:
    artifact = service.current().artifact
    return ModelDescription(version=artifact.version, metadata=artifact.metadata)
