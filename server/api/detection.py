"""One detection request, whatever its API: accepted, read, run through the pipeline, responded to.

`accepted_detection` is the way of a request from its headers to its response; the APIs differ in
what they read and in what they write.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np
from fastapi import Request
from numpy.typing import NDArray
from starlette.responses import Response
from starlette.types import Receive

from server.api.body import Form, Limits, read_form
from server.api.responses import stage_ms
from server.errors import BadInput
from server.http.state import RequestRecord, record_of, state_of
from server.serving.interface import Candidates, LoadedModel
from server.serving.pipeline import Found
from server.serving.service import Service
from server.serving.threads import ClientLeft
from server.vision.nms import DetectParameters

# Of the event loop: it reads the end of the connection, the protocol notes it, the watcher is woken
# and ends the request. One more, as their order within a turn is not ours.
TURNS_TO_LEAVE = 4


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


@asynccontextmanager
async def leaving_with_client(receive: Receive) -> AsyncIterator[threading.Event]:
    """Ends the block when the client disconnects; the request's body must be read already.

    Not even begins it when the client closed the connection right behind its request.

    Yields:
        Is set as soon as the client has left; for threads, which a cancellation reaches late.

    Raises:
        ClientLeft: it did.
    """
    parent = asyncio.current_task()
    assert parent is not None
    left = threading.Event()

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        left.set()
        parent.cancel()

    watcher = asyncio.create_task(watch())
    try:
        # What was read so far came before the end of the connection, which may be there to be read.
        for _ in range(TURNS_TO_LEAVE):
            await asyncio.sleep(0)
        yield left
    except (asyncio.CancelledError, ClientLeft):
        # Our own cancellation is ours to take back; one from outside goes on.
        if left.is_set() and parent.uncancel() == 0:
            raise ClientLeft from None
        raise
    finally:
        watcher.cancel()
