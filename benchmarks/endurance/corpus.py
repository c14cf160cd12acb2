"""Images of many sizes and formats, and what a server at rest finds in each."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
from numpy.typing import NDArray

from benchmarks.endurance.process import Server, answered
from benchmarks.load.http_client import Request, request_wire

# (width, height): a VGA photo, upright, 16:9, a thumbnail, a large photo, a strip
SIZES = ((640, 480), (480, 640), (1280, 720), (160, 120), (2560, 1920), (700, 90))
FORMATS = {
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
    ".bmp": "image/bmp",
    ".tiff": "image/tiff",
}
MOST_PIXELS = 500_000  # of what is stored without loss: a body should not be all that is tested
DEFAULT_CONF, DEEPSTACK_CONF, LEAST_CONF = 0.25, 0.4, 0.001
# A score this near the threshold may fall on either side: threads change the last bits.
NEAR = 0.002
# At conf=0.001, which box is the 300th is decided by the last bits of scores.
MANY_BOXES_SLACK = 0.03


@dataclass(frozen=True, slots=True)
class Image:
    """One image file.

    Attributes:
        name: unique; its ending is the format's.
        media_type: of HTTP.
        data: the file.
        hw: (height, width) in pixels.
    """

    name: str
    media_type: str
    data: bytes
    hw: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many boxes an answer holds: at least and at most."""

    least: int
    most: int

    def hold(self, boxes: int) -> bool:
        """Whether the number is right."""
        return self.least <= boxes <= self.most


# (image's name, conf) -> bounds
Expected = Mapping[tuple[str, float], Bounds]


def corpus(folder: Path, most: int = 4) -> list[Image]:
    """The first JPEGs of a folder, by name, in every size, and the smaller sizes in every format.

    Raises:
        ValueError: it holds no JPEG.
    """
    images = []
    for path in sorted(folder.glob("*.jpg"))[:most]:
        original = cv2.imread(str(path), cv2.IMREAD_COLOR)
        assert original is not None, path
        for width, height in SIZES:
            image = fitted(original, (height, width))
            for ending, media_type in FORMATS.items():
                if ending == ".jpg" or width * height <= MOST_PIXELS:
                    name = f"{path.stem}_{width}x{height}{ending}"
                    data = cv2.imencode(ending, image)[1].tobytes()
                    images.append(Image(name, media_type, data, (height, width)))
    if not images:
        raise ValueError(f"{folder} holds no JPEG")
    return images


def fitted(image: NDArray[Any], hw: tuple[int, int]) -> NDArray[Any]:
    """The image's middle in another size, nothing stretched."""
    height, width = image.shape[:2]
    scale = max(hw[0] / height, hw[1] / width)
    size = max(hw[1], round(width * scale)), max(hw[0], round(height * scale))
    resized = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    top, left = (size[1] - hw[0]) // 2, (size[0] - hw[1]) // 2
    return resized[top : top + hw[0], left : left + hw[1]]


async def expected(
    server: Server,
    images: Sequence[Image],
    thresholds: Sequence[float],
    headers: Mapping[str, str] | None = None,
) -> dict[tuple[str, float], Bounds]:
    """Asks a server at rest, one image at a time: what it must find under load, too."""
    found = {}
    for image in images:
        for conf in thresholds:
            if conf == LEAST_CONF:
                boxes = await _boxes(server, image, conf, headers)
                slack = int(MANY_BOXES_SLACK * boxes) + 1
                bounds = Bounds(boxes - slack, boxes + slack)
            else:
                counts = [await _boxes(server, image, conf + d, headers) for d in (NEAR, -NEAR)]
                bounds = Bounds(min(counts), max(counts))
            found[image.name, conf] = bounds
    return found


async def _boxes(
    server: Server, image: Image, conf: float, headers: Mapping[str, str] | None
) -> int:
    path = f"/detect?conf={conf}"
    sent = {"Content-Type": image.media_type} | dict(headers or {})
    answer = await answered(server, Request(request_wire("POST", path, image.data, sent)))
    if answer.status != 200:
        raise RuntimeError(f"{image.name} at rest: {answer.status} {answer.body!r}")
    (result,) = json.loads(answer.body)["results"]
    return len(result["detections"])
