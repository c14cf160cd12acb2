"""What can be asked of a server, each as an operation that does no I/O."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from yolov8_fla_client.errors import ImageRefused, Refused, ServerFailed, UnexpectedResponse
from yolov8_fla_client.exchange import Operation, Request, Response
from yolov8_fla_client.images import ImageFile, failed
from yolov8_fla_client.parameters import Parameters
from yolov8_fla_client.responses import IMAGE_CODES, error_of, read_health, read_model, read_results
from yolov8_fla_client.results import (
    AnnotatedImage,
    Health,
    ImageError,
    ImageResult,
    ModelDescription,
)

# Sends a request, again where that may help, and returns the final answer.
Ask = Callable[[Request], Operation[Response]]

BINARY = "application/octet-stream"
# Read at once by a call for any number of images; the rest wait as paths, or as they were given.
IMAGES_OF_A_CALL = 64
MEDIA_TYPES = ("image/jpeg", "image/png")


class Limits:
    """What one request to a server holds at most; lowered by what the server refuses.

    Attributes:
        images: at first the server's own default.
        content_bytes: of all its images; at first half of the server's default for a body.
    """

    def __init__(self, images: int = 64, content_bytes: int = 16 * 2**20) -> None:
        self.images = images
        self.content_bytes = content_bytes

    def refused(self, code: str, files: Sequence[ImageFile]) -> None:
        """Learns from a 413 to a request of several images."""
        if code != "too_many_images":
            half = sum(len(each.content) for each in files) // 2
            self.content_bytes = max(1, min(self.content_bytes, half))
        if code != "body_too_large":
            self.images = max(1, min(self.images, len(files) // 2))

    def parts(self, files: Sequence[ImageFile]) -> Iterator[list[ImageFile]]:
        """The images in their order, as few parts as fit; one too large is a part alone."""
        part: list[ImageFile] = []
        part_bytes = 0
        for each in files:
            over = part_bytes + len(each.content) > self.content_bytes
            if part and (over or len(part) >= self.images):
                yield part
                part, part_bytes = [], 0
            part.append(each)
            part_bytes += len(each.content)
        if part:
            yield part


def detecting(
    files: Sequence[ImageFile | ImageResult],
    parameters: Parameters,
    ask: Ask,
    limits: Limits,
    *,
    go_on: bool,
) -> Operation[list[ImageResult]]:
    """Detects in images, in as many requests as the server's limits make of them.

    Args:
        files: those that could not be read here come as their results.
        parameters: thresholds and classes.
        ask: sends requests.
        limits: what is known of the server's; learns more.
        go_on: an image that the server fails on is a result with an error, too.

    Returns:
        One result an image, in their order.

    Raises:
        DetectClientError: the server could not be asked, or refused more than single images.
    """
    readable = [each for each in files if isinstance(each, ImageFile)]
    found: list[ImageResult] = []
    for part in limits.parts(readable):
        found += yield from _detecting_part(part, parameters, ask, limits, go_on)
    results = iter(found)
    return [next(results) if isinstance(each, ImageFile) else each for each in files]


def _detecting_part(
    part: list[ImageFile], parameters: Parameters, ask: Ask, limits: Limits, go_on: bool
) -> Operation[list[ImageResult]]:
    response = yield from ask(_detect_request(part, parameters.query()))
    if response.status == 200:
        results = read_results(response)
        if len(results) != len(part):
            raise UnexpectedResponse(f"{len(part)} images were sent, {len(results)} results came")
        # Images go out under their number: a name may hold what no header can.
        return [replace(r, filename=p.name) for r, p in zip(results, part, strict=True)]
    error = error_of(response)
    if not isinstance(error, ImageRefused) and not (go_on and isinstance(error, ServerFailed)):
        raise error
    assert isinstance(error, Refused)
    if len(part) == 1:
        return [failed(part[0].name, error.code, error.detail)]
    smaller = [[each] for each in part]
    # Else none can be read, and the answer tells of the first only; or one made all fail.
    if error.status == 413 and error.code not in IMAGE_CODES:
        limits.refused(error.code, part)
        fewer = list(limits.parts(part))
        smaller = fewer if len(fewer) > 1 else smaller  # one: of images without a byte
    results = []
    for each in smaller:
        for again in limits.parts(each):  # of what the requests before may have learned
            results += yield from _detecting_part(again, parameters, ask, limits, go_on)
    return results


def annotating(
    file: ImageFile, parameters: Parameters, ask: Ask, *, png: bool
) -> Operation[AnnotatedImage]:
    """Has one image drawn with its detections.

    Raises:
        ImageRefused: the server can't read it.
        DetectClientError: as for `detecting`.
    """
    query = [*parameters.query(), ("format", "image")]
    accept = "image/png" if png else "image/jpeg"
    response = yield from ask(_detect_request([file], query, accept))
    if response.status != 200:
        raise error_of(response)
    if response.media_type not in MEDIA_TYPES:
        raise UnexpectedResponse(f"an image was asked for, {response.media_type or 'nothing'} came")
    return AnnotatedImage(file.name, response.body, response.media_type)


def annotating_each(
    files: Sequence[ImageFile | ImageResult],
    parameters: Parameters,
    ask: Ask,
    *,
    png: bool | None,
) -> Operation[list[AnnotatedImage]]:
    """As `annotating`, for several images; one that the server can't read or fails on goes on.

    Args:
        files: those that could not be read here come as their results.
        parameters: thresholds and classes.
        ask: sends requests.
        png: whether the answers shall be PNG; None: where the image's name says so.
    """
    found = []
    for each in files:
        if isinstance(each, ImageResult):
            found.append(AnnotatedImage(each.filename, b"", None, each.error))
            continue
        as_png = (each.name or "").lower().endswith(".png") if png is None else png
        try:
            found.append((yield from annotating(each, parameters, ask, png=as_png)))
        except (ImageRefused, ServerFailed) as error:
            fault = ImageError(error.code, error.detail)
            found.append(AnnotatedImage(each.name, b"", None, fault))
    return found


def asking_health(ask: Ask) -> Operation[Health]:
    """The server's state; a server that is not ready tells it with a 503."""
    response = yield from ask(Request("GET", "/health"))
    if response.status not in (200, 503):
        raise error_of(response)
    try:
        return read_health(response)
    except UnexpectedResponse:
        if response.status == 503:  # a proxy's, that has no server behind it
            raise error_of(response) from None
        raise


def asking_model(ask: Ask) -> Operation[ModelDescription]:
    """The model that is served."""
    response = yield from ask(Request("GET", "/model"))
    if response.status != 200:
        raise error_of(response)
    return read_model(response)


def _detect_request(
    files: Sequence[ImageFile], query: list[tuple[str, str]], accept: str = "application/json"
) -> Request:
    headers = {"Accept": accept}
    # An empty file as the whole body would be no image; as a part it is one that can't be read.
    if len(files) == 1 and files[0].content:
        headers["Content-Type"] = BINARY
        return Request("POST", "/detect", query, headers, content=files[0].content)
    contents = tuple(each.content for each in files)
    return Request("POST", "/detect", query, headers, files=contents)
