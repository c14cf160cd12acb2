"""The client that waits."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

import httpx

from yolov8_fla_client import operations
from yolov8_fla_client.exchange import NoResponse, Operation, Outcome, Send, Wait
from yolov8_fla_client.images import (
    Image,
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
_ABANDONED = NoResponse("the stream was closed", again=False)


class Client:
    """Asks a server and waits for the answers; may be used from several threads.

    Close it, or use it in a `with` statement.

    Args:
        url: the server's address, such as "http://127.0.0.1:8000"; may have a path, as behind a
            proxy.
        api_key: where the server asks for one.
        timeout_s: seconds without any progress after which an attempt is given up. The server
            gives a request 30 s by default, and answers 504 then.
        retry: when requests are sent again.
        transport: for httpx, such as `httpx.HTTPTransport(verify=...)` for a certificate of your
            own. (Without one, httpx heeds the variables HTTP_PROXY and SSL_CERT_FILE.)

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
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        connection = Connection.to(url, api_key, timeout_s, retry)
        self._ask, self._ask_once = connection.asker(), connection.asker(once=True)
        self._limits = connection.limits
        self._http = httpx.Client(transport=transport, **connection.http)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def detect(
        self,
        images: Image | Iterable[Image],
        **chosen: Unpack[Chosen],
    ) -> list[ImageResult]:
        """Finds objects in one image or several; as many requests are made as limits ask for.

        Args:
            images: a path, bytes of an image file, a binary file, a (H, W, 3) uint8 RGB array, a
                `NamedImage`; or several of these.
            **chosen: `conf`, `iou`, `max_det`, `classes`, `agnostic_nms`, as `Chosen` says.

        Returns:
            One result for each image, in their order. One that the server can't read has an
            `error`, and the others are there.

        Raises:
            OSError: a file can't be read here.
            TypeError, ValueError: something is not an image, or not a parameter's value.
            Refused: the server refuses a parameter or the key, can't take the request, or fails.
            Unreachable: no answer came.
            UnexpectedResponse: the address is not this server's.
        """
        parameters = Parameters(**chosen)
        found: list[ImageResult] = []
        for group in groups_of(as_sequence(images), operations.IMAGES_OF_A_CALL):
            files = [read_image(each) for each in group]
            operation = operations.detecting(
                files, parameters, self._ask, self._limits, go_on=False
            )
            found += self._run(operation)
        return found

    def stream(
        self,
        images: Iterable[Image],
        *,
        in_flight: int = 4,
        images_per_request: int = 4,
        ordered: bool = False,
        progress: bool = False,
        total: int | None = None,
        **chosen: Unpack[Chosen],
    ) -> Generator[ImageResult, None, None]:
        """Detects in any number of images; yields results as they come.

        At most `in_flight * images_per_request` images are in memory. Images are taken from the
        iterable only when there is room for them. A stream that is closed early waits for the
        requests that are on their way.

        Args:
            images: as for `detect`, such as a generator of `NamedImage`.
            in_flight: requests at once, >= 1.
            images_per_request: at most, >= 1.
            ordered: yield in the images' order; else those that are done first come first.
            progress: show a bar on standard error; needs tqdm.
            total: images in all, for the bar.
            **chosen: as for `detect`.

        Yields:
            One result for each image. One that can't be read, here or by the server, or that the
            server fails on (500) has an `error`, and the others go on.

        Raises:
            DetectClientError: as for `detect`, where the cause is not one image; what is done has
                been yielded (of an ordered stream, what stands before the gap).
        """
        parameters = Parameters(**chosen)

        def group_done(group: list[Image], stopped: Event) -> list[ImageResult]:
            operation = operations.detecting(
                [read_or_tell(each) for each in group],
                parameters,
                self._ask,
                self._limits,
                go_on=True,
            )
            return self._run(operation, stopped)

        groups = groups_of(images, images_per_request)
        yield from _streamed(groups, group_done, in_flight, ordered, progress, total)

    def detect_folder(
        self,
        folder: str | Path,
        *,
        all_files: bool = False,
        progress: bool = False,
        **flow: Unpack[Flow],
    ) -> Generator[ImageResult, None, None]:
        """Detects in all images of a folder and the folders in it, as `stream` does.

        Results have names relative to the folder, with slashes. Hidden files and folders are left
        out.

        Args:
            folder: where to begin; it is listed while the stream goes on.
            all_files: also those whose names do not end as an image's.
            progress: show a bar on standard error; needs tqdm.
            **flow: the other options of `stream`.

        Raises:
            OSError: the folder can't be listed.
            DetectClientError: as for `stream`.
        """
        total = count_below(Path(folder), all_files=all_files) if progress else None
        images = images_below(Path(folder), all_files=all_files)
        yield from self.stream(images, progress=progress, total=total, **flow)

    def annotated(
        self,
        image: Image,
        *,
        png: bool = False,
        **chosen: Unpack[Chosen],
    ) -> bytes:
        """One image with its detections drawn in, as the bytes of a JPEG, or of a PNG.

        Raises:
            ImageRefused: the server can't read the image.
            DetectClientError, OSError, TypeError, ValueError: as for `detect`.
        """
        parameters = Parameters(**chosen)
        file = read_image(image)
        return self._run(operations.annotating(file, parameters, self._ask, png=png)).image

    def stream_annotated(
        self,
        images: Iterable[Image],
        *,
        png: bool | None = None,
        in_flight: int = 4,
        ordered: bool = False,
        progress: bool = False,
        total: int | None = None,
        **chosen: Unpack[Chosen],
    ) -> Generator[AnnotatedImage, None, None]:
        """As `stream`, but yields images with the detections drawn in.

        Args:
            images: see `stream`, as for all that is not named here.
            png: whether they shall be PNG, not JPEG; None: where an image's name ends so.
            in_flight: requests of one image at once, >= 1.
            ordered: yield in the images' order.
            progress: show a bar.
            total: for the bar.
            **chosen: see `detect`.
        """
        parameters = Parameters(**chosen)

        def group_done(group: list[Image], stopped: Event) -> list[AnnotatedImage]:
            files = [read_or_tell(each) for each in group]
            operation = operations.annotating_each(files, parameters, self._ask, png=png)
            return self._run(operation, stopped)

        yield from _streamed(groups_of(images, 1), group_done, in_flight, ordered, progress, total)

    def health(self) -> Health:
        """The server's state as it is now; asked once. A server that is not ready tells it, too."""
        return self._run(operations.asking_health(self._ask_once))

    def model(self) -> ModelDescription:
        """The model that is served."""
        return self._run(operations.asking_model(self._ask))

    def _run(self, operation: Operation[Result], stopped: Event | None = None) -> Result:
        """Does what an operation asks for until it is done; not much more once `stopped`."""
        stopped = stopped or Event()
        outcome: Outcome | None = None
        while True:
            try:
                step = operation.send(outcome)
            except StopIteration as end:
                result: Result = end.value
                return result
            match step:
                case Wait(seconds):
                    stopped.wait(seconds)
                    outcome = None
                case Send():
                    outcome = _ABANDONED if stopped.is_set() else self._exchange(step)

    def _exchange(self, send: Send) -> Outcome:
        request = self._http.build_request(**http_arguments(send))
        try:
            response = self._http.send(request, stream=True)
            try:
                body = bytearray()
                for piece in response.iter_bytes():
                    body += piece
                    if (reason := given_up(body, send)) is not None:
                        return reason
                return response_of(response, bytes(body))
            finally:
                response.close()
        except httpx.HTTPError as error:
            return no_response(error, request.url)


def _streamed(
    groups: Iterator[list[Image]],
    group_done: Callable[[list[Image], Event], list[Item]],
    in_flight: int,
    ordered: bool,
    progress: bool,
    total: int | None,
) -> Generator[Item, None, None]:
    """Runs groups on threads within a window; yields what comes of them."""
    window: Window[Future[list[Item]], Item] = Window(in_flight, ordered)
    with showing(progress, total) as reporter, _stoppable(in_flight) as (pool, stopped):
        more = True
        while more or window.running:
            if more and window.has_room():
                group = next(groups, None)
                if group is None:
                    more = False
                else:
                    window.begin(pool.submit(group_done, group, stopped))
            # What is done goes out before a source that may be slow is asked for more.
            at_once = 0 if more and window.has_room() else None
            done = wait(window.running, at_once, FIRST_COMPLETED).done
            for each in window.finish(done, Future.result):
                reporter.done(each)
                yield each


@contextmanager
def _stoppable(threads: int) -> Iterator[tuple[ThreadPoolExecutor, Event]]:
    """Threads that begin nothing new, and wait for nothing, once the block is left."""
    pool, stopped = ThreadPoolExecutor(threads, "detect"), Event()
    try:
        yield pool, stopped
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)
