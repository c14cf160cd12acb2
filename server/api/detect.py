"""`POST /detect`, the server's own endpoint. `detect` is the request path, top to bottom."""

from collections.abc import Sequence

from fastapi import APIRouter, Request
from fastapi.params import Depends
from starlette.responses import Response

from server.api.detection import accepted_detection
from server.api.openapi import detect_request, image_response, problem_responses
from server.api.parameters import read_parameters
from server.api.responses import annotated_image, detections_json, first_found, prefers_png
from server.api.schemas import DetectResponse
from server.errors import BadInput, InvalidParameter
from server.http.middleware import DETECTION
from server.serving.pipeline import Found


def routes(guards: Sequence[Depends]) -> APIRouter:
    """The route, with what guards it."""
    router = APIRouter(dependencies=guards, tags=[DETECTION])
    router.add_api_route(
        "/detect",
        detect,
        methods=["POST"],
        response_model=DetectResponse,
        responses=image_response() | problem_responses(400, 401, 413, 415, 422, 500, 503, 504),
        openapi_extra=detect_request(),
    )
    return router


async def detect(request: Request) -> Response:
    """Finds objects in one or more images."""
    async with accepted_detection(request) as detection:
        form = await detection.read_form()
        artifact = detection.engine.artifact
        class_names = artifact.metadata.class_names
        parameters = read_parameters(
            [*request.query_params.multi_items(), *form.fields], class_names
        )
        draws = parameters.format == "image"
        if draws and len(form.images) > 1:
            raise InvalidParameter(f"format=image takes one image, not {len(form.images)}")

        def render(outcomes: list[Found | BadInput]) -> Response:
            first = first_found(outcomes, form.images[0].filename)
            record = detection.record
            if draws:
                content, media_type = annotated_image(
                    form.images[0],
                    first.detections,
                    class_names,
                    detection.service.settings.max_image_pixels,
                    prefers_png(",".join(request.headers.getlist("accept"))),
                )
                return Response(content, media_type=media_type, headers={"Vary": "Accept"})
            json = detections_json(
                artifact,
                form.images,
                outcomes,
                record.stage_ms | {"total": round(record.elapsed_s() * 1000, 3)},
                # Whole boxes are for suppressing again, which decides by their overlaps.
                box_decimals=2 if parameters.detect.clip else 4,
            )
            return Response(json, media_type="application/json")

        encoded = [upload.data for upload in form.images]
        return await detection.detect(encoded, parameters.detect, render, draws=draws)
