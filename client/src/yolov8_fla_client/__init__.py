"""A client of the server: images in, detections out, over HTTP.

    with Client("http://127.0.0.1:8000") as client:
        for result in client.detect(["a.jpg", "b.jpg"], conf=0.25):
            print(result.filename, len(result.detections))

docs/client.md is its guide. It needs httpx, and loads numpy, tqdm and supervision only where they
are asked for.
"""

try:
    import httpx as _httpx  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "httpx":
        raise
    raise ModuleNotFoundError("the client needs httpx: pip install httpx", name="httpx") from None

from yolov8_fla_client.async_client import AsyncClient
from yolov8_fla_client.errors import (
    DetectClientError,
    ImageRefused,
    Refused,
    ServerFailed,
    Unauthorized,
    Unavailable,
    UnexpectedResponse,
    Unreachable,
)
from yolov8_fla_client.images import NamedImage
from yolov8_fla_client.results import (
    AnnotatedImage,
    Box,
    Detection,
    Health,
    ImageError,
    ImageResult,
    ModelDescription,
    ModelName,
    Timings,
)
from yolov8_fla_client.retry import Retry
from yolov8_fla_client.sync_client import Client

__all__ = [
    "AnnotatedImage",
    "AsyncClient",
    "Box",
    "Client",
    "DetectClientError",
    "Detection",
    "Health",
    "ImageError",
    "ImageRefused",
    "ImageResult",
    "ModelDescription",
    "ModelName",
    "NamedImage",
    "Refused",
    "Retry",
    "ServerFailed",
    "Timings",
    "Unauthorized",
    "Unavailable",
    "UnexpectedResponse",
    "Unreachable",
]
