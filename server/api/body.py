"""Reading a detection request: its images and its parameters, within limits, as they stream in."""

import asyncio
import codecs
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field

import orjson

from server.api.base64_text import read_base64
from server.api.multipart import MultipartReader, Part
from server.api.parameters import NAMES, truncate_repr
from server.errors import MalformedRequest, NoImage, TooLarge, UnsupportedImage
from server.serving.body_budget import BodyReservation, announced_bytes

MULTIPART = "multipart/form-data"
JSON = "application/json"
RAW = "application/octet-stream"
Buffer = bytes | bytearray
PIECE_BYTES = 256 * 1024
BYTE_ORDER_MARK = codecs.BOM_UTF8
# Base64 has no commas; a document of millions would hold Python's lock while it is parsed.
MAX_JSON_COMMAS = 10_000
# What a JSON body takes beside its own bytes, in their multiples, while it is read: the parser's
# copy and its texts, then the texts and the images in them. A text with one character outside
# Latin-1 takes four bytes for each.
JSON_COPIES = 2
WIDE_JSON_COPIES = 5


@dataclass(frozen=True, slots=True)
class Upload:
    """One image as it was sent: not decoded, perhaps not an image at all."""

    filename: str | None
    data: bytes


@dataclass(frozen=True, slots=True)
class Form:
    """What a request's body holds.

    Attributes:
        images: in the order they were sent, at least one.
        fields: the other parts or keys; text from a form, any JSON value from JSON.
    """

    images: list[Upload]
    fields: list[tuple[str, object]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may hold at most."""

    max_body_bytes: int
    max_images: int

    def check_bytes(self, body_bytes: int) -> None:
        """Raises `TooLarge` when a body has, or will have, more bytes than allowed."""
        if body_bytes > self.max_body_bytes:
            raise TooLarge(
                f"the body has at least {body_bytes} bytes; max_body_bytes is "
                f"{self.max_body_bytes}",
                code="body_too_large",
            )

    def check_images(self, images: int) -> None:
        """Raises `TooLarge` when there are more images than allowed."""
        if images > self.max_images:
            raise TooLarge(
                f"the request has at least {images} images; max_images_per_request is "
                f"{self.max_images}",
                code="too_many_images",
            )


async def read_form(
    headers: Mapping[str, str],
    stream: AsyncIterator[bytes],
    limits: Limits,
    reservation: BodyReservation,
    pool: Executor,
) -> Form:
    """Reads a body in any of the three forms that are served.

    Args:
        headers: the request's, names in lower case or without regard to case.
        stream: the body, in pieces; not read further than a limit allows.
        limits: checked while reading, before anything is kept.
        reservation: of the memory for all bodies; taken from while reading, and released by whoever
            made it, when the images are not needed any more.
        pool: where what takes time for a large body is done; the event loop only waits.

    Raises:
        MalformedRequest: multipart, JSON or base64 that cannot be read.
        NoImage: a readable body without an image.
        TooLarge: too many bytes or images.
        UnsupportedImage: a content type or encoding that is not served.
        UploadsFull: other requests' bodies are in the memory that this one needs.
    """
    refuse_by_headers(headers, limits, reservation)
    run = asyncio.get_running_loop().run_in_executor
    content_type = headers.get("content-type", RAW)
    match media_type := content_type.split(";")[0].strip().lower():
        case "multipart/form-data":
            parts = await _read_multipart(content_type, stream, limits, reservation)
            form = await run(pool, _form_of, parts)
        case "application/json":
            body = await read_whole(stream, limits, reservation)
            reservation.take(len(body) * await run(pool, json_copies, body))
            form = await run(pool, parse_json, body, limits) if body else Form([])
        case "application/octet-stream":
            form = await run(pool, _raw, await read_whole(stream, limits, reservation))
        case _ if media_type.startswith("image/"):
            form = await run(pool, _raw, await read_whole(stream, limits, reservation))
        case _:
            raise UnsupportedImage(
                f"Content-Type {media_type!r} is not served; send {MULTIPART}, {JSON}, image/* "
                f"or {RAW}"
            )
    if not form.images:
        raise NoImage(f"the request holds no image{_likely_mistake(form, media_type)}")
    return form


def refuse_by_headers(
    headers: Mapping[str, str], limits: Limits, reservation: BodyReservation
) -> None:
    """Refuses a body that could not be read, before all of it is sent in vain.

    Raises:
        TooLarge, UploadsFull: it is announced to have too many bytes.
        UnsupportedImage: it is encoded.
    """
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedImage(
            f"Content-Encoding {headers['content-encoding']!r} is not served; send it unencoded"
        )
    body_bytes = announced_bytes(headers)
    limits.check_bytes(body_bytes)
    reservation.check(body_bytes)


async def read_whole(
    stream: AsyncIterator[bytes], limits: Limits, reservation: BodyReservation
) -> bytearray:
    """A whole body, as it is; its copy as `bytes` is for a thread to make.

    Raises:
        TooLarge, UploadsFull: before the piece that would be too much is kept.
    """
    # Not a list of pieces: of one byte each, they would take forty times their size.
    body = bytearray()
    async for chunk in stream:
        limits.check_bytes(len(body) + len(chunk))
        reservation.take(len(chunk))
        body += chunk
    return body


def json_copies(body: Buffer) -> int:
    """How many times its own size a JSON body takes in memory beside itself, at most."""
    start = len(BYTE_ORDER_MARK) if body.startswith(BYTE_ORDER_MARK) else 0
    # In pieces, between which other threads get Python's lock; the last byte is seen again.
    for at in range(start, len(body), PIECE_BYTES):
        piece = body[at : at + PIECE_BYTES + 1]
        if b"\\u" in piece or not piece.isascii():
            return WIDE_JSON_COPIES
    return JSON_COPIES


def load_json(body: Buffer, end: int | None = None) -> object:
    """A JSON document, up to `end`; some programs put a byte order mark before it.

    Raises:
        orjson.JSONDecodeError: it is none.
    """
    start = len(BYTE_ORDER_MARK) if body.startswith(BYTE_ORDER_MARK) else 0
    return orjson.loads(memoryview(body)[start:end])


def parse_json(body: Buffer, limits: Limits) -> Form:
    """Reads `{"images": ["<base64>", ...], ...}`; a `data:` URL counts as its base64.

    Raises:
        MalformedRequest: not JSON, not an object, or `images` is not a list of base64 texts.
        TooLarge: too many images.
    """
    if (commas := body.count(b",")) > MAX_JSON_COMMAS:
        raise MalformedRequest(f"the JSON body has {commas} commas, over {MAX_JSON_COMMAS}")
    try:
        document = load_json(body)
    except orjson.JSONDecodeError as error:  # has the position, and nothing of the document
        raise MalformedRequest(f"the body is not valid JSON: {error}") from None
    if not isinstance(document, dict):
        raise MalformedRequest('the JSON body must be an object like {"images": ["<base64>"]}')
    texts = document.pop("images", [])
    if not isinstance(texts, list):
        raise MalformedRequest("images must be a list of base64 texts")
    limits.check_images(len(texts))
    for index, text in enumerate(texts):
        if isinstance(text, str) and text.startswith("data:"):
            texts[index] = text.partition(",")[2]
    images = [
        Upload(None, read_base64(text, f"images[{index}]")) for index, text in enumerate(texts)
    ]
    return Form(images, list(document.items()))


async def _read_multipart(
    content_type: str, stream: AsyncIterator[bytes], limits: Limits, reservation: BodyReservation
) -> list[Part]:
    reader = MultipartReader(content_type, on_file=limits.check_images)
    body_bytes = 0
    async for chunk in stream:
        body_bytes += len(chunk)
        limits.check_bytes(body_bytes)
        reservation.take(len(chunk))
        reader.feed(chunk)
    return reader.finish() if body_bytes else []  # as an empty body of another type: no image


def _form_of(parts: list[Part]) -> Form:
    form = Form([])
    for part in parts:
        if part.is_file:
            form.images.append(Upload(part.filename or None, bytes(part.data)))
            part.data.clear()  # not kept beside its copy
        else:
            form.fields.append((part.name, part.text()))
    return form


def _raw(body: bytearray) -> Form:
    data = bytes(body)
    body.clear()  # not kept beside its copy
    return Form([Upload(None, data)] if data else [])


def _likely_mistake(form: Form, media_type: str) -> str:
    """Of a body without an image: the field that was probably meant to be one."""
    meant = next((name for name, _ in form.fields if name not in NAMES), None)
    if meant is None:
        return ""
    if media_type == JSON:
        return f': unknown field {truncate_repr(meant)}; images come as "images": ["<base64>", ...]'
    return f": field {truncate_repr(meant)} is text; a file is sent as image=@FILE"
