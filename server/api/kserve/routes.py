"""`/v2/...`, the Open Inference Protocol (KServe v2) over REST, with the binary data extension.

`infer` is the request path, top to bottom.
"""

from collections.abc import Sequence

import numpy as np
from fastapi import APIRouter, Request
from fastapi.params import Depends
from numpy.typing import NDArray
from starlette.responses import Response

from server.api.body import Buffer, Limits, read_whole, refuse_by_headers
from server.api.detection import accepted_detection
from server.api.kserve.messages import (
    JSON_LENGTH_HEADER,
    InferRequest,
    parsed_bytes,
    read_infer_request,
    write_infer_response,
)
from server.api.kserve.models import InferModel, detection_tensors, find_model, images_in
from server.api.kserve.openapi import (
    InferAnswer,
    Live,
    ModelMetadata,
    ModelReady,
    Ready,
    ServerMetadata,
    TensorMetadata,
    error_responses,
    infer_request,
    infer_responses,
    path_parameters,
)
from server.api.kserve.tensors import OutputTensor, TensorSpec, read_files, read_pixels
from server.api.parameters import read_parameters, truncate_repr
from server.api.responses import first_found
from server.errors import BadInput, InvalidParameter
from server.http.middleware import DETECTION
from server.http.state import state_of
from server.inference.artifact import Artifact, Metadata
from server.serving.pipeline import Found
from server.version import this_build
from server.vision.nms import DetectParameters

PREFIX = "/v2"


def routes(model_name: str, guards: Sequence[Depends]) -> APIRouter:
    """The routes.

    Args:
        model_name: for OpenAPI's examples of paths.
        guards: stand before all but the probes.
    """
    router = APIRouter(prefix=PREFIX)
    router.add_api_route("", server_metadata, responses=error_responses(401), dependencies=guards)
    router.add_api_route("/health/live", live, responses=error_responses(503))
    router.add_api_route("/health/ready", ready, responses=error_responses(503))
    for versioned in (False, True):
        path = "/models/{name}" + ("/versions/{version}" if versioned else "")
        parts = path_parameters(model_name, versioned=versioned)
        described = infer_request()
        described["parameters"] = parts + described["parameters"]
        router.add_api_route(
            path,
            model_metadata,
            responses=error_responses(401, 404, 503),
            openapi_extra={"parameters": parts},
            dependencies=guards,
        )
        router.add_api_route(
            f"{path}/ready",
            model_ready,
            responses=error_responses(404, 503),
            openapi_extra={"parameters": parts},
        )
        router.add_api_route(
            f"{path}/infer",
            infer,
            methods=["POST"],
            response_model=InferAnswer,
            responses=infer_responses(),
            openapi_extra=described,
            dependencies=guards,
            tags=[DETECTION],
        )
    return router


async def server_metadata() -> ServerMetadata:
    """What serves, and which extensions of the protocol it has."""
    return ServerMetadata(
        name="yolov8-fla", version=this_build().version, extensions=["binary_tensor_data"]
    )


async def live(request: Request) -> Live:
    """Whether the process can do its work; if not, it should be restarted."""
    state_of(request.app).service.refuse_unless_alive()
    return Live(live=True)


async def ready(request: Request) -> Ready:
    """Whether requests are taken now."""
    state_of(request.app).service.refuse_unless_ready()
    return Ready(ready=True)


async def model_ready(request: Request) -> ModelReady:
    """Whether requests for the model are taken now."""
    service = state_of(request.app).service
    service.refuse_unless_ready()
    return ModelReady(name=_requested_model(request, service.current().artifact).name, ready=True)


async def model_metadata(request: Request) -> ModelMetadata:
    """The tensors that a model takes and answers."""
    model = _requested_model(request, state_of(request.app).service.current().artifact)
    return ModelMetadata(
        name=model.name,
        versions=[model.version],
        platform="onnx_onnxv1",
        inputs=[_described(model.input)],
        outputs=[_described(spec) for spec in model.outputs],
        parameters=model.parameters,
    )


async def infer(request: Request) -> Response:
    """Detections in image files (NAME), or the network's candidates (NAME-raw)."""
    async with accepted_detection(request) as detection:
        artifact = detection.engine.artifact
        model = _requested_model(request, artifact)
        limits, reservation = detection.limits, detection.record.body_reservation
        refuse_by_headers(request.headers, limits, reservation)
        body = await read_whole(request.stream(), limits, reservation)
        json_length = request.headers.get(JSON_LENGTH_HEADER)
        on_thread = detection.service.pipeline.on_thread
        reservation.take(await on_thread(parsed_bytes, body, json_length))
        message, images = await on_thread(_read, body, json_length, model, artifact, limits)
        detection.record.images = len(images)
        parameters = _parameters(message, model, artifact.metadata)

        def write(tensors: list[OutputTensor]) -> Response:
            head = {"model_name": model.name, "model_version": model.version}
            if message.id is not None:
                head["id"] = message.id
            content, binary_from = write_infer_response(head, tensors, message.outputs)
            if binary_from is None:
                return Response(content, media_type="application/json")
            headers = {JSON_LENGTH_HEADER: str(binary_from)}
            return Response(content, headers=headers, media_type="application/octet-stream")

        def render(outcomes: list[Found | BadInput]) -> Response:
            first_found(outcomes)
            return write(detection_tensors(outcomes))

        if isinstance(images, np.ndarray):
            return await detection.infer(
                images, lambda found: write([OutputTensor(model.outputs[0], found)])
            )
        return await detection.detect(images, parameters, render)


def _requested_model(request: Request, artifact: Artifact) -> InferModel:
    parts = request.path_params
    return find_model(artifact, parts["name"], parts.get("version"))


def _described(spec: TensorSpec) -> TensorMetadata:
    return TensorMetadata(name=spec.name, datatype=spec.datatype, shape=list(spec.shape))


def _read(
    body: Buffer, json_length: str | None, model: InferModel, artifact: Artifact, limits: Limits
) -> tuple[InferRequest, list[bytes] | NDArray[np.uint8]]:
    """The request, and its images as files or as one array, as the model takes them."""
    infer_request = read_infer_request(body, json_length, model.outputs)
    limits.check_images(images_in(infer_request.input, model, artifact.metadata))
    return infer_request, read_pixels(infer_request.input) if model.raw else read_files(
        infer_request.input
    )


def _parameters(
    infer_request: InferRequest, model: InferModel, metadata: Metadata
) -> DetectParameters:
    for name in infer_request.parameters:
        if model.raw:
            raise InvalidParameter(
                f"{model.name} takes no parameter {truncate_repr(name)}: "
                "candidates come before thresholds"
            )
        if name == "format":  # of POST /detect alone
            raise InvalidParameter("unknown parameter 'format': the answer is made of tensors")
    return read_parameters(list(infer_request.parameters.items()), metadata.class_names).detect
