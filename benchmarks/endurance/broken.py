"""Requests that can't be served: broken images, bombs, wrong types, nothing at all."""

import struct
import zlib

from benchmarks.endurance.corpus import Image
from benchmarks.endurance.forms import DETECT, BadFile, Part, multipart
from benchmarks.endurance.shots import Shot, loaded
from benchmarks.load.http_client import Answer

BOMB_SIDE = 40_000  # 1.6 thousand million pixels in a file of less than 100 bytes


def bad_files(image: Image) -> list[BadFile]:
    """Files that stand among good ones, or alone; `image` is a JPEG."""
    return [
        BadFile("cut.jpg", image.data[: len(image.data) // 2], "undecodable_image"),
        BadFile("head.jpg", image.data[:3], "undecodable_image"),
        BadFile("bomb.png", png_bomb(), "too_many_pixels"),
        BadFile("text.jpg", b"this is no image" * 10, "unsupported_image"),
        BadFile("empty.jpg", b"", "undecodable_image"),
    ]


def broken_shots(image: Image) -> list[Shot]:
    """One of each kind; `image` is a JPEG."""
    statuses = {"undecodable_image": 422, "too_many_pixels": 413, "unsupported_image": 415}
    alone = [
        _shot(each.name, each.data, "image/jpeg", statuses[each.code], each.code, counted=True)
        for each in bad_files(image)
        if each.data  # an empty body holds no image
    ]
    form_of_bad, form_headers = multipart(
        [Part("a", each.name, each.data) for each in bad_files(image)[:2]]
    )
    cut_form = form_of_bad[: len(form_of_bad) - 40]
    as_form = form_headers["Content-Type"]
    return [
        *alone,
        _shot("nothing", b"", "image/jpeg", 400, "no_image"),
        _shot("wrong type", image.data, "text/html", 415, "unsupported_image"),
        _shot("no JSON", b'{"images": [', "application/json", 400, "malformed_request"),
        _shot("no base64", b'{"images": ["!"]}', "application/json", 400, "malformed_request"),
        _shot("cut form", cut_form, as_form, 400, "malformed_request"),
        _shot("bad conf", image.data, "image/jpeg", 422, "invalid_parameter", query="?conf=2"),
    ]


def png_bomb() -> bytes:
    """A PNG file that declares far more pixels than it has."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", BOMB_SIDE, BOMB_SIDE, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            chunk(b"IDAT", pixels),
            chunk(b"IEND", b""),
        ]
    )


def _shot(
    name: str,
    body: bytes,
    media_type: str,
    status: int,
    code: str,
    *,
    counted: bool = False,
    query: str = "",
) -> Shot:
    def check(answer: Answer) -> str | None:
        said = (loaded(answer) or {}).get("code")
        return None if said == code else f"broken, {name}: {said} instead of {code}"

    images = {code: 1} if counted else {}
    headers = {"Content-Type": media_type}
    return Shot("broken", DETECT, DETECT + query, body, headers, images, status, check)
