"""The client for asyncio: what `Client` does, without standing still."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

from yolov8_fla_client import operations
from yolov8_fla_client.exchange import Operation, Outcome, Send, Wait
from yolov8_fla_client.images import (
    Image,
    ImageFile,
    as_sequence,
    count_below,
    images_below,
    read_image,
    read_or_tell,
)
from yolov8_fla_client.parameters import Chosen, Flow, Parameters
from yolov8_fla_client.progress import showing
from yolov8_fla_client.results import AnnotatedImage, Health, ImageResult, ModelDescription
from yolov8_fla_client.retry import Retry
from yolov8_fla_client.settings import (
    Connection,
    given_up,
    http_arguments,
    no_response,
    response_of,
)
from yolov8_fla_client.window import Window, groups_of

if TYPE_CHECKING:  # for type checkers alone: Python 3.10 has neither in typing
    from typing_extensions import Self, Unpack

Result = TypeVar("Result")
Item = TypeVar("Item", ImageResult, AnnotatedImage)


class AsyncClient:
    """Asks a server from asyncio; files are read on threads.

    Close it, or use it in an `async with` statement. Arguments are those of `Client`.

    Raises:
        ValueError: one of these is not of its kind.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        retry: Retry = Retry(),  # noqa: B008  # frozen
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        connection = Connection.to(url, api_key, timeout_s, retry)
        self._ask, self._ask_once = connection.asker(), connection.asker(once=True)
        self._limits = connection.limits
        self._http = httpx.AsyncClient(transport=transport, **connection.http)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def detect(
        self, images: Image | Iterable[Image], **chosen: Unpack[Chosen]
    ) -> list[ImageResult]:
        """See `Client.detect`."""
        parameters = Parameters(**chosen)
        found: list[ImageResult] = []
        for group in groups_of(as_sequence(images), operations.IMAGES_OF_A_CALL):
            files: list[ImageFile | ImageResult] = [
                await asyncio.to_thread(read_image, each) for each in group
            ]
            operation = operations.detecting(
                files, parameters, self._ask, self._limits, go_on=False
            )
            found += await self._run(operation)
        return found

    async def stream(
        self,
        images: Iterable[Image],
        *,
        in_flight: int = 4,
        images_per_request: int = 4,
        ordered: bool = False,
        progress: bool = False,
        total: int | None = None,
        **chosen: Unpack[Chosen],
    ) -> AsyncGenerator[ImageResult, None]:
        """See `Client.stream`; the iterable is asked on threads, one image after the other.

        A stream that is left early is closed by `contextlib.aclosing`, or with the event loop;
        requests on their way are then given up at once.
        """
        parameters = Parameters(**chosen)

        async def group_done(group: list[Image]) -> list[ImageResult]:
            operation = operations.detecting(
                [await asyncio.to_thread(read_or_tell, each) for each in group],
                parameters,
                self._ask,
                self._limits,
                go_on=True,
            )
            return await self._run(operation)

        groups = groups_of(images, images_per_request)
        async with aclosing(
            _streamed(groups, group_done, in_flight, ordered, progress, total)
        ) as results:
            async for each in results:
                yield each

    async def detect_folder(
        self,
        folder: str | Path,
        *,
        all_files: bool = False,
        progress: bool = False,
        **flow: Unpack[Flow],
    ) -> AsyncGenerator[ImageResult, None]:
        """See `Client.detect_folder`, and `stream` about leaving it early."""
        total = None
        if progress:
            total = await asyncio.to_thread(count_below, Path(folder), all_files=all_files)
        images = images_below(Path(folder), all_files=all_files)
        async with aclosing(self.stream(images, progress=progress, total=total, **flow)) as results:
            async for each in results:
                yield each

    async def annotated(
        self, image: Image, *, png: bool = False, **chosen: Unpack[Chosen]
    ) -> bytes:
        """See `Client.annotated`."""
        file = await asyncio.to_thread(read_image, image)
        operation = operations.annotating(file, Parameters(**chosen), self._ask, png=png)
        return (await self._run(operation)).image

    async def stream_annotated(
        self,
        images: Iterable[Image],
        *,
        png: bool | None = None,
        in_flight: int = 4,
        ordered: bool = False,
        progress: bool = False,
        total: int | None = None,
        **chosen: Unpack[Chosen],
    ) -> AsyncGenerator[AnnotatedImage, None]:
        """See `Client.stream_annotated`, and `stream` about leaving it early."""
        parameters = Parameters(**chosen)

        async def group_done(group: list[Image]) -> list[AnnotatedImage]:
            files = [await asyncio.to_thread(read_or_tell, each) for each in group]
            operation = operations.annotating_each(files, parameters, self._ask, png=png)
            return await self._run(operation)

        async with aclosing(
            _streamed(groups_of(images, 1), group_done, in_flight, ordered, progress, total)
        ) as results:
            async for each in results:
                yield each

    async def health(self) -> Health:
        """See `Client.health`."""
        return await self._run(operations.asking_health(self._ask_once))

    async def model(self) -> ModelDescription:
        """See `Client.model`."""
        return await self._run(operations.asking_model(self._ask))

    async def _run(self, operation: Operation[Result]) -> Result:
        """Does what an operation asks for until it is done."""
        outcome: Outcome | None = None
        while True:
            try:
                step = operation.send(outcome)
            except StopIteration as end:
                result: Result = end.value
                return result
            match step:
                case Wait(seconds):
                    await asyncio.sleep(seconds)
                    outcome = None
                case Send():
                    outcome = await self._exchange(step)

    async def _exchange(self, send: Send) -> Outcome:
        request = self._http.build_request(**http_arguments(send))
        try:
            response = await self._http.send(request, stream=True)
            try:
                body = bytearray()
                async for piece in response.aiter_bytes():
                    body += piece
                    if (reason := given_up(body, send)) is not None:
                        return reason
                return response_of(response, bytes(body))
            finally:
                await response.aclose()
        except httpx.HTTPError as error:
            return no_response(error, request.url)


async def _streamed(
    groups: Iterator[list[Image]],
    group_done: Callable[[list[Image]], Coroutine[Any, Any, list[Item]]],
    in_flight: int,
    ordered: bool,
    progress: bool,
    total: int | None,
) -> AsyncGenerator[Item, None]:
    """Runs groups as tasks within a window; yields what comes of them."""
    window: Window[asyncio.Task[list[Item]], Item] = Window(in_flight, ordered)
    more = True
    with showing(progress, total) as reporter:
        try:
            while more or window.running:
                if more and window.has_room():
                    group = await asyncio.to_thread(next, groups, None)
                    if group is None:
                        more = False
                    else:
                        window.begin(asyncio.create_task(group_done(group)))
                if not window.running:
                    continue
                # What is done goes out before a source that may be slow is asked for more.
                at_once = 0 if more and window.has_room() else None
                done, _ = await asyncio.wait(
                    window.running, timeout=at_once, return_when=asyncio.FIRST_COMPLETED
                )
                for each in window.finish(done, asyncio.Task.result):
                    reporter.done(each)
                    yield each
        finally:
            for task in window.running:
                task.cancel()
            await asyncio.gather(*window.running, return_exceptions=True)
