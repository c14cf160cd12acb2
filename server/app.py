"""The HTTP face of the detector. `detect` is the request path, top to bottom."""

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path

from fastapi import Depends, FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, Response

from server.answers import annotated_picture, detections_json, stage_ms
from server.artifact import Artifact, load_artifact
from server.body import Limits, Upload, read_form
from server.concurrency import ClientLeft, leaving_with_client, together
from server.errors import (
    BadInput,
    DeadlineExceeded,
    DeploymentError,
    InferenceFailed,
    InvalidParameter,
    MalformedRequest,
    NoImage,
    NotReady,
    ServerError,
    SessionLost,
    TooLarge,
    Unauthorized,
    Unavailable,
    UndecodableImage,
    UnsupportedImage,
)
from server.keys import key_check, key_schemes
from server.logs import get_logger
from server.metrics import CONTENT_TYPE
from server.middleware import RequestRecord, RequestScope, record_of
from server.openapi import detect_request, picture_response, problem_responses
from server.parameters import read_parameters
from server.schemas import Alive, DetectResponse, Health, ModelDescription, Problem
from server.service import Found, OpenSession, Service
from server.session import Session, open_on_first
from server.settings import Settings

# One row per kind of fault; the first class that matches wins.
STATUS: tuple[tuple[type[ServerError], int], ...] = (
    (MalformedRequest, 400),
    (NoImage, 400),
    (Unauthorized, 401),
    (TooLarge, 413),
    (UnsupportedImage, 415),
    (UndecodableImage, 422),
    (InvalidParameter, 422),
    (Unavailable, 503),
    (DeadlineExceeded, 504),
    (InferenceFailed, 500),
)
INTERNAL_DETAIL = "the server failed; its log has the reason under this request id"
CLIENT_LEFT = Response(status_code=499)  # for the log and the metrics: nobody reads it

logger = get_logger(__name__)


def create_app(
    settings: Settings,
    *,
    open_session: Callable[[Artifact, Settings], OpenSession] | None = None,
    on_failure: Callable[[], None] = lambda: None,
) -> FastAPI:
    """Builds the app around one model; it is loaded when the lifespan starts.

    Args:
        settings: checked settings; the artifact they name is read and checked here.
        open_session: loads the model; ONNX Runtime by default.
        on_failure: called once when the service can't go on; `app.state.service.failure` says
            why, and the process should end.

    Raises:
        ArtifactInvalid: the model file is not one this server can serve.
    """
    artifact = load_artifact(settings.model)
    service = Service(
        settings,
        artifact,
        open_session=lambda: (open_session or open_onnx_session)(artifact, settings),
        on_failure=on_failure,
        rejection_reasons=sorted(rejection_reasons(ServerError)),
    )
    limits = Limits(settings.max_body_bytes, settings.max_images_per_request)
    class_names = artifact.metadata.class_names

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPI(
        title="yolov8-fla",
        summary="Images in, boxes out.",
        version="1",  # of the interface, not of the model
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.service = service
    app.add_middleware(RequestScope, metrics=service.metrics, unexpected=answer_unexpected)
    guarded = [Depends(scheme) for scheme in key_schemes()] if settings.api_keys else []
    guarded.append(Depends(key_check(settings)))

    @app.post(
        "/detect",
        response_model=DetectResponse,
        responses=picture_response() | problem_responses(400, 401, 413, 415, 422, 500, 503, 504),
        openapi_extra=detect_request(),
        dependencies=guarded,
    )
    async def detect(request: Request) -> Response:
        """Finds objects in one or more images."""
        record = record_of(request.scope)
        async with service.accept() as deadline:
            form = await read_form(request.headers, request.stream(), limits, service.pool)
            record.images = len(form.images)
            given = [*request.query_params.multi_items(), *form.fields]
            chosen = read_parameters(given, class_names)
            if chosen.format == "image" and len(form.images) > 1:
                raise InvalidParameter(f"format=image takes one image, not {len(form.images)}")
            async with leaving_with_client(request.receive):
                with service.batcher.reserve(len(form.images)) as slots:
                    outcomes = await together(
                        service.detect_image(upload.data, chosen.detect, slots, deadline)
                        for upload in form.images
                    )
                count_images(outcomes)
                record.stage_ms = stage_ms(outcomes)
                first = first_found(form.images, outcomes)
                if chosen.format == "image":
                    content, media_type = await service.on_pool(
                        annotated_picture,
                        form.images[0],
                        first.detections,
                        class_names,
                        settings.max_image_pixels,
                        "image/png" in request.headers.get("accept", ""),
                    )
                    return Response(content, media_type=media_type)
                timings_ms = record.stage_ms | {"total": round(record.elapsed_s() * 1000, 3)}
                content = await service.on_pool(
                    detections_json, artifact, form.images, outcomes, timings_ms
                )
                return Response(content, media_type="application/json")

    def count_images(outcomes: list[Found | BadInput]) -> None:
        for outcome in outcomes:
            label = "ok" if isinstance(outcome, Found) else outcome.code
            service.metrics.images.labels(label).inc()

    @app.get("/model", responses=problem_responses(401), dependencies=guarded)
    async def model() -> ModelDescription:
        """Metadata of the artifact, with its parity certificate."""
        return ModelDescription(version=artifact.version, metadata=artifact.metadata)

    @app.get("/health/live", responses=problem_responses(503))
    async def live() -> Alive:
        """Whether the process can do its work; if not, it should be restarted."""
        if service.state == "failed":
            raise NotReady("the model has stopped")
        return Alive(status="live")

    @app.get("/health/ready", responses=problem_responses(503))
    async def ready() -> Alive:
        """Whether requests are taken now."""
        service.refuse_unless_ready()
        return Alive(status="ready")

    @app.get("/health", responses={503: {"model": Health}})
    async def health(response: Response) -> Health:
        """State, model and the provider that really runs; 503 unless ready."""
        response.status_code = 200 if service.state == "ready" else 503
        session = service.session
        return Health(
            status=service.state,
            model=artifact.metadata.name,
            version=artifact.version,
            precision=artifact.metadata.precision,
            provider=session.provider if session else None,
            device=session.device if session else None,
            queue_images=service.batcher.queue_images,
            max_queue_images=settings.max_queue_images,
        )

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Prometheus metrics in the text format."""
        return Response(service.metrics.exposition(), media_type=CONTENT_TYPE)

    page = Path(__file__).with_name("page.html").read_text(encoding="utf-8")

    @app.get("/", include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(page)

    @app.exception_handler(ServerError)
    async def answer(request: Request, error: ServerError) -> Response:
        status = status_of(error)
        if request.url.path == "/detect":
            service.metrics.rejected.labels(error.code).inc()
        if status == 500:
            logger.error("request_failed", code=error.code, exc_info=error)
        headers = {}
        if isinstance(error, Unavailable):
            headers["Retry-After"] = str(service.batcher.retry_after_s())
        if isinstance(error, Unauthorized):
            headers["WWW-Authenticate"] = "Bearer"
        detail = INTERNAL_DETAIL if status == 500 else str(error)
        return problem(record_of(request.scope), status, error.code, detail, headers)

    @app.exception_handler(HTTPException)
    async def answer_framework(request: Request, error: HTTPException) -> Response:
        code = HTTPStatus(error.status_code).name.lower()
        detail = f"{request.method} {request.url.path}: {error.detail}"
        headers = dict(error.headers or {})
        return problem(record_of(request.scope), error.status_code, code, detail, headers)

    @app.exception_handler(ClientLeft)
    @app.exception_handler(ClientDisconnect)
    async def answer_nobody(_: Request, __: Exception) -> Response:
        return CLIENT_LEFT

    return app


def open_onnx_session(artifact: Artifact, settings: Settings) -> OpenSession:
    """Loads the artifact into ONNX Runtime."""
    return open_on_first(
        settings.device,
        lambda device: Session.open(artifact, device=device, threads=settings.intra_op_threads),
    )


def first_found(uploads: list[Upload], outcomes: list[Found | BadInput]) -> Found:
    """The first image that could be read.

    Raises:
        BadInput: none could; the first image's error is the request's, and names the image where
            there are several.
    """
    for outcome in outcomes:
        if isinstance(outcome, Found):
            return outcome
    error = outcomes[0]
    assert isinstance(error, BadInput)
    if len(outcomes) > 1:
        first = ", ".join(filter(None, ("the first", uploads[0].filename)))
        error.args = (f"none of the {len(outcomes)} images can be read; {first}: {error}",)
    raise error


def status_of(error: ServerError) -> int:
    """The HTTP status of an error; 500 for one that no request should raise."""
    return next((status for kind, status in STATUS if isinstance(error, kind)), 500)


def rejection_reasons(kind: type[ServerError]) -> Iterator[str]:
    """The error codes that a request can meet."""
    if issubclass(kind, DeploymentError | SessionLost):
        return
    below = kind.__subclasses__()
    if issubclass(kind, TooLarge):
        yield from kind.CODES
    elif not below:
        yield kind.code
    for each in below:
        yield from rejection_reasons(each)


def problem(
    record: RequestRecord, status: int, code: str, detail: str, headers: dict[str, str]
) -> Response:
    """An error as RFC 9457 describes it."""
    record.code = code
    body = Problem(
        type=f"urn:yolov8-fla:{code}",
        title=code.replace("_", " ").capitalize(),
        status=status,
        detail=detail,
        code=code,
        request_id=record.request_id,
    )
    content = json.dumps(body.model_dump(), ensure_ascii=False)
    return Response(content, status, headers, "application/problem+json")


def answer_unexpected(record: RequestRecord) -> Response:
    """The answer to an exception that nobody caught."""
    return problem(record, 500, "internal_error", INTERNAL_DETAIL, {})
