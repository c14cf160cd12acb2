"""What operates the server: health, metrics, the model's description and its reload."""

from collections.abc import Awaitable, Callable, Sequence

from fastapi import APIRouter
from fastapi.params import Depends
from starlette.responses import Response

from server.api.openapi import problem_responses
from server.api.schemas import Alive, Health, ModelDescription
from server.observability.metrics import CONTENT_TYPE
from server.serving.service import Service
from server.version import this_build


def routes(
    service: Service,
    reload: Callable[[], Awaitable[None]],
    guards: Sequence[Depends],
    strict_guards: Sequence[Depends],
) -> APIRouter:
    """The routes; `guards` stand before what tells of the model, strict ones before a reload."""
    router = APIRouter()

    @router.get("/model", responses=problem_responses(401, 503), dependencies=guards)
    async def model() -> ModelDescription:
        """Metadata of the artifact, with its parity certificate."""
        return described()

    @router.post(
        "/model/reload",
        responses=problem_responses(401, 403, 409, 503),
        dependencies=strict_guards,
    )
    async def reload_model() -> ModelDescription:
        """Loads the configured model files and keys anew; until it answers, the old ones serve."""
        await reload()
        return described()

    def described() -> ModelDescription:
        artifact = service.current().artifact
        return ModelDescription(version=artifact.version, metadata=artifact.metadata)

    @router.get("/health/live", responses=problem_responses(503))
    async def live() -> Alive:
        """Whether the process can do its work; if not, it should be restarted."""
        service.refuse_unless_alive()
        return Alive(status="live")

    @router.get("/health/ready", responses=problem_responses(503))
    async def ready() -> Alive:
        """Whether requests are taken now."""
        service.refuse_unless_ready()
        return Alive(status="ready")

    @router.get("/health", responses={503: {"model": Health}})
    async def health(response: Response) -> Health:
        """State, model and the provider that really runs; 503 unless ready."""
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

    @router.get("/metrics", response_class=Response, responses=problem_responses(503))
    async def metrics() -> Response:
        """Prometheus metrics in the text format; 503 where the process that has them hangs."""
        return Response(await service.exposition(), media_type=CONTENT_TYPE)

    return router
