"""`POST /detect`, the server's own endpoint. `detect` is the request path, top to bottom."""

from collections.abc import Sequence

from fastapi import APIRouter, Request
from fastapi.params import Depends
from starlette.responses import Response

from server.api.body import Limits, read_form
from server.api.openapi import detect_request, image_response, problem_responses
from server.api.parameters import read_parameters
from server.api.responses import (
    annotated_image,
    detections_json,
    first_found,
    prefers_png,
    stage_ms,
)
from server.api.schemas import DetectResponse
from server.errors import BadInput, InvalidParameter
from server.http.disconnect import leaving_with_client
from server.http.middleware import DETECTION, record_of
from server.serving.pipeline import Found
from server.serving.service import Service


def routes(service: Service, limits: Limits, guards: Sequence[Depends]) -> APIRouter:
    """The route, with what guards it."""
    router = APIRouter(dependencies=guards, tags=[DETECTION])

    @router.post(
        "/detect",
        response_model=DetectResponse,
        responses=image_response() | problem_responses(400, 401, 413, 415, 422, 500, 503, 504),
        openapi_extra=detect_request(),
    )
    async def detect(request: Request) -> Response:
        """Finds objects in one or more images."""
        record = record_of(request.scope)
        async with service.accept() as deadline:
            engine = service.current()
            form = await read_form(
                request.headers,
                request.stream(),
                limits,
                record.body_reservation,
                service.pipeline.response_threads,
            )
            record.version = engine.artifact.version
            record.images = len(form.images)
            parameters = [*request.query_params.multi_items(), *form.fields]
            chosen = read_parameters(parameters, engine.artifact.metadata.class_names)
            if chosen.format == "image" and len(form.images) > 1:
                raise InvalidParameter(f"format=image takes one image, not {len(form.images)}")

            def respond(outcomes: list[Found | BadInput]) -> tuple[bytes, str]:
                record.stage_ms = stage_ms(outcomes)
                first = first_found(outcomes, form.images[0].filename)
                if chosen.format == "image":
                    return annotated_image(
                        form.images[0],
                        first.detections,
                        engine.artifact.metadata.class_names,
                        service.settings.max_image_pixels,
                        prefers_png(",".join(request.headers.getlist("accept"))),
                    )
                timings_ms = record.stage_ms | {"total": round(record.elapsed_s() * 1000, 3)}
                json = detections_json(
                    engine.artifact,
                    form.images,
                    outcomes,
                    timings_ms,
                    # Whole boxes are for suppressing again, which decides by their overlaps.
                    box_decimals=2 if chosen.detect.clip else 4,
                )
                return json, "application/json"

            async with leaving_with_client(request.receive) as left:
                encoded = [upload.data for upload in form.images]
                content, media_type = await service.pipeline.detect(
                    engine,
                    encoded,
                    chosen.detect,
                    deadline,
                    respond,
                    draws=chosen.format == "image",
                    left=left,
                )
            headers = {"Vary": "Accept"} if chosen.format == "image" else None
            return Response(content, media_type=media_type, headers=headers)

    return router
