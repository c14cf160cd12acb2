"""What a request leaves in memory once it is answered: nothing."""

import base64
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.api.body import Upload
from server.api.multipart import MultipartReader
from server.inference.detector import Prepared
from tests.support.artifacts import POISON, paint
from tests.support.serving import encode, one_cell, served

pytestmark = pytest.mark.anyio
IMAGE = one_cell()
POISONED = paint((64, 64), {(0, 1): (255, 0, 0)})
POISONED[0, 0] = POISON
CUT = {"content-type": "multipart/form-data; boundary=cut"}
REQUESTS: dict[str, tuple[int, dict[str, Any]]] = {
    "raw": (200, {"content": IMAGE}),
    "multipart": (200, {"files": [("a", IMAGE), ("b", b"no image")]}),
    "json": (200, {"json": {"images": [base64.b64encode(IMAGE).decode()]}}),
    "image": (200, {"content": IMAGE, "params": {"format": "image"}}),
    "no image": (415, {"files": {"a": b"no image"}}),
    "wrong parameter": (422, {"files": {"a": IMAGE}, "params": {"conf": "x"}}),
    "too many": (413, {"files": [("a", IMAGE)] * 65}),
    "too many pixels": (413, {"files": [("a", IMAGE)] * 5}),
    "cut": (
        400,
        {
            "content": b'--cut\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\nx',
            "headers": CUT,
        },
    ),
    "failed inference": (500, {"files": {"a": encode(POISONED)}}),
}


@pytest.fixture
def no_garbage_collection() -> Iterator[None]:
    """Only what is not referenced goes; what refers to itself in a circle stays."""
    gc.collect()
    gc.disable()
    gc.freeze()  # what there is already is not looked at
    yield
    gc.unfreeze()
    gc.enable()


@pytest.mark.usefixtures("no_garbage_collection")
@pytest.mark.parametrize("name", REQUESTS)
async def test_an_answered_request_keeps_no_image(artifact: Path, name: str) -> None:
    status, request = REQUESTS[name]
    async with served(artifact, max_image_pixels=20_000, max_request_pixels=20_000) as running:
        assert (await running.client.post("/detect", **request)).status_code == status
        # A thread may hold its last piece of work for a moment longer.
        await running.until(lambda: not images_in_memory())


def images_in_memory() -> list[object]:
    holders = Upload | MultipartReader | Prepared
    return [each for each in gc.get_objects() if isinstance(each, holders)]
