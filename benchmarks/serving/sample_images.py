"""The images that are sent, and how many boxes the answer to each must hold."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from benchmarks.load.contestants import Thresholds
from benchmarks.load.http_client import Answer, Request, image_request
from server.inference.artifact import load_artifact
from server.inference.detector import finish, prepare_encoded
from server.inference.session import Session
from server.vision.decode import decode
from server.vision.nms import DetectParameters

JPEG_QUALITY = 90
WIDE = 16 / 9
MAX_PIXELS = 50_000_000


@dataclass(frozen=True, slots=True)
class Image:
    """One JPEG file.

    Attributes:
        name: for messages.
        data: the file.
        hw: (height, width) in pixels.
    """

    name: str
    data: bytes
    hw: tuple[int, int]


def read_images(folder: Path, most: int) -> list[Image]:
    """The first JPEGs of a folder that are 640 x 480, by name.

    Raises:
        ValueError: there is none.
    """
    images = []
    for path in sorted(folder.glob("*.jpg")):
        data = path.read_bytes()
        if decode(data, max_pixels=MAX_PIXELS).shape[:2] == (480, 640):
            images.append(Image(path.name, data, (480, 640)))
        if len(images) == most:
            break
    if not images:
        raise ValueError(f"{folder} holds no JPEG of 640 x 480")
    return images


def widened(image: Image) -> Image:
    """The middle of an image at 16:9, encoded anew."""
    pixels = cv2.imdecode(np.frombuffer(image.data, np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None
    height, width = pixels.shape[:2]
    kept = round(width / WIDE)
    top = (height - kept) // 2
    quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    data = cv2.imencode(".jpg", pixels[top : top + kept], quality)[1].tobytes()
    return Image(image.name, data, (kept, width))


def box_counts(artifact: Path, images: Sequence[Image], thresholds: Thresholds) -> list[int]:
    """How many boxes the pipeline without a server finds in each image."""
    model = load_artifact(artifact)
    session = Session.open(model, device="cpu", threads=1)
    parameters = DetectParameters(conf=thresholds.conf, max_det=thresholds.max_det)
    counts = []
    for image in images:
        prepared, _ = prepare_encoded(
            image.data, model.metadata, max_pixels=MAX_PIXELS, dct_scaling=True
        )
        (candidates,) = session.run(prepared.canvas[None])
        found = finish(candidates, prepared, model.metadata, parameters)
        counts.append(len(found.detections.scores))
    return counts


def requests(
    path: str, images: Sequence[Image], counts: Sequence[int], slack: float
) -> list[Request]:
    """A request for each image, whose answer has to hold as many boxes as were counted.

    Args:
        path: with the query.
        images: to be sent.
        counts: boxes of each.
        slack: by which share of the boxes an answer may be off.
    """
    return [
        image_request(path, image.data, counted(count, slack), image.name)
        for image, count in zip(images, counts, strict=True)
    ]


def counted(count: int, slack: float) -> Callable[[Answer], str | None]:
    """A check on the number of boxes, at no JSON parser's cost."""
    most_off = slack * count

    def check(answer: Answer) -> str | None:
        boxes = answer.body.count(b'"class_id"')
        return None if abs(boxes - count) <= most_off else "other number of boxes"

    return check
