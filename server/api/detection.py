"""One detection request, whatever its API: accepted, read, run through the pipeline, responded to.

`accepted_detection` is the way of a request from its headers to its response; the APIs differ in
what they read and in what they write.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np
from fastapi import Request
from numpy.typing import NDArray
from starlette.responses import Response

from server.api.body import Form, Limits, read_form
from server.api.responses import stage_ms
from server.errors import BadInput
from server.http.disconnect import leaving_with_client
from server.http.state import RequestRecord, record_of, state_of
from server.serving.interface import Candidates, LoadedModel
from server.serving.pipeline import Found
from server.serving.service import Service
from server.vision.nms import DetectParameters


@dataclass(frozen=True, slots=True)
class Detection:
    """An accepted request.

    Attributes:
        request: its headers and its body.
        service: accepted it.
        record: what becomes known of it, for log, metrics and traces.
        limits: of its body.
        engine: the model that serves it to its end, whatever is loaded meanwhile.
        deadline: seconds of the event loop's clock; later nothing is inferred.
    """

    request: Request
    service: Service
    record: RequestRecord
    limits: Limits
    engine: LoadedModel
    deadline: float

    async def read_form(self) -> Form:
        """Its images and fields; raises what `server.api.body.read_form` does."""
        form = await read_form(
            self.request.headers,
            self.request.stream(),
            self.limits,
            self.record.body_reservation,
            self.service.pipeline.response_threads,
        )
        self.record.images = len(form.images)
        return form

    async def detect(
        self,
        encoded: Sequence[bytes],
        parameters: DetectParameters,
        render: Callable[[list[Found | BadInput]], Response],
        *,
        draws: bool = False,
    ) -> Response:
        """Detects objects in image files; the body must be read already.

        Args:
            encoded: whole image files.
            parameters: for all of them.
            render: makes the response of one outcome per image, on a thread.
            draws: `render` decodes and draws; see `server.serving.pipeline.Pipeline.detect`.

        Raises:
            ServerError: as `Pipeline.detect` and `render` do.
            ClientLeft: nobody waits for the response any more.
        """

        def respond(outcomes: list[Found | BadInput]) -> Response:
            self.record.stage_ms = stage_ms(outcomes)
            return render(outcomes)

        async with leaving_with_client(self.request.receive) as left:
            return await self.service.pipeline.detect(
                self.engine, encoded, parameters, self.deadline, respond, draws=draws, left=left
            )

    async def infer(
        self, canvases: NDArray[np.uint8], render: Callable[[Candidates], Response]
    ) -> Response:
        """Runs the network alone; as `Pipeline.infer`, with `render` on a thread."""
        pipeline = self.service.pipeline
        async with leaving_with_client(self.request.receive):
            candidates, stage_s = await pipeline.infer(self.engine, canvases, self.deadline)
            self.record.stage_ms = {stage: 1000 * s for stage, s in stage_s.items()}
            return await pipeline.on_thread(render, candidates)


@asynccontextmanager
async def accepted_detection(request: Request) -> AsyncIterator[Detection]:
    """Accepts a request, and bounds its time.

    Raises:
        NotReady, Draining, QueueFull, DeadlineExceeded: as `Service.accept` does.
    """
    service = state_of(request.app).service
    record = record_of(request.scope)
    settings = service.settings
    limits = Limits(settings.max_body_bytes, settings.max_images_per_request)
    async with service.accept() as deadline:
        engine = service.current()
        record.version = engine.artifact.version
        yield Detection(request, service, record, limits, engine, deadline)
