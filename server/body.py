"""Reading a detection request: its images and its parameters, within limits, as they stream in."""

import asyncio
import base64
import binascii
import json
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field

from server.errors import MalformedRequest, NoImage, TooLarge, UnsupportedImage
from server.multipart import MultipartReader
from server.parameters import NAMES, shown

MULTIPART = "multipart/form-data"
JSON = "application/json"
RAW = "application/octet-stream"
# Base64 has no commas; a document of millions would hold Python's lock while it is parsed.
MAX_JSON_COMMAS = 10_000


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
    headers: Mapping[str, str], stream: AsyncIterator[bytes], limits: Limits, pool: Executor
) -> Form:
    """Reads a body in any of the three forms that are served.

    Args:
        headers: the request's, names in lower case or without regard to case.
        stream: the body, in pieces; not read further than a limit allows.
        limits: checked while reading, before anything is kept.
        pool: where JSON is parsed; the event loop only waits.

    Raises:
        MalformedRequest: multipart, JSON or base64 that cannot be read.
        NoImage: a readable body without an image.
        TooLarge: too many bytes or images.
        UnsupportedImage: a content type or encoding that is not served.
    """
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedImage(
            f"Content-Encoding {headers['content-encoding']!r} is not served; send it unencoded"
        )
    limits.check_bytes(_announced_bytes(headers))
    content_type = headers.get("content-type", RAW)
    match media_type := content_type.split(";")[0].strip().lower():
        case "multipart/form-data":
            form = await _read_multipart(content_type, stream, limits)
        case "application/json":
            body = await _read_whole(stream, limits)
            loop = asyncio.get_running_loop()
            form = await loop.run_in_executor(pool, parse_json, body, limits)
        case "application/octet-stream":
            form = _raw(await _read_whole(stream, limits))
        case _ if media_type.startswith("image/"):
            form = _raw(await _read_whole(stream, limits))
        case _:
            raise UnsupportedImage(
                f"Content-Type {media_type!r} is not served; send {MULTIPART}, {JSON}, image/* "
                f"or {RAW}"
            )
    if not form.images:
        raise NoImage(f"the request holds no image{_likely_mistake(form, media_type)}")
    return form


def parse_json(body: bytes, limits: Limits) -> Form:
    """Reads `{"images": ["<base64>", ...], ...}`; a `data:` URL counts as its base64.

    Raises:
        MalformedRequest: not JSON, not an object, or `images` is not a list of base64 texts.
        TooLarge: too many images.
    """
    if body.count(b",") > MAX_JSON_COMMAS:
        raise MalformedRequest(f"the JSON body has more than {MAX_JSON_COMMAS} values")
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):  # ValueError: JSON, UTF-8 and overlong numbers
        raise MalformedRequest("the body is not valid JSON") from None
    if not isinstance(document, dict):
        raise MalformedRequest('the JSON body must be an object like {"images": ["<base64>"]}')
    texts = document.pop("images", [])
    if not isinstance(texts, list):
        raise MalformedRequest("images must be a list of base64 texts")
    limits.check_images(len(texts))
    images = [Upload(None, _from_base64(text, index)) for index, text in enumerate(texts)]
    return Form(images, list(document.items()))


def _from_base64(text: object, index: int) -> bytes:
    if not isinstance(text, str):
        raise MalformedRequest(f"images[{index}] must be a base64 text")
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):  # ValueError: characters outside ASCII
        raise MalformedRequest(f"images[{index}] is not valid base64") from None


async def _read_multipart(content_type: str, stream: AsyncIterator[bytes], limits: Limits) -> Form:
    reader = MultipartReader(content_type, on_file=limits.check_images)
    body_bytes = 0
    async for chunk in stream:
        body_bytes += len(chunk)
        limits.check_bytes(body_bytes)
        reader.feed(chunk)
    parts = reader.finish()
    images = [Upload(part.filename or None, part.data) for part in parts if part.is_file]
    fields: list[tuple[str, object]] = [
        (part.name, part.text()) for part in parts if not part.is_file
    ]
    return Form(images, fields)


async def _read_whole(stream: AsyncIterator[bytes], limits: Limits) -> bytes:
    chunks = []
    body_bytes = 0
    async for chunk in stream:
        body_bytes += len(chunk)
        limits.check_bytes(body_bytes)
        chunks.append(chunk)
    return b"".join(chunks)


def _raw(body: bytes) -> Form:
    return Form([Upload(None, body)] if body else [])


def _likely_mistake(form: Form, media_type: str) -> str:
    """Of a body without an image: the field that was probably meant to be one."""
    meant = next((name for name, _ in form.fields if name not in NAMES), None)
    if meant is None:
        return ""
    if media_type == JSON:
        return f': unknown field {shown(meant)}; images come as "images": ["<base64>", ...]'
    return f": field {shown(meant)} is text; a file is sent as image=@FILE"


def _announced_bytes(headers: Mapping[str, str]) -> int:
    announced = headers.get("content-length", "0")
    # An HTTP server has refused anything else before us; a test client may not have.
    return int(announced) if announced.isascii() and announced.isdigit() else 0
