"""The bodies that the HTTP interface answers with; OpenAPI is made from these."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from server.inference.artifact import Metadata


class Body(BaseModel):
    """Base of all answers: what is not described here is not sent."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Box(Body):
    """A rectangle in pixels of the upright original image; x to the right, y down."""

    x1: float
    y1: float
    x2: float
    y2: float


class Detection(Body):
    """One object that was found."""

    class_id: int
    class_name: str
    score: float = Field(ge=0, le=1)
    box: Box


class ImageError(Body):
    """Why one image among others could not be read."""

    code: str
    detail: str


class ImageResult(Body):
    """What was found in one image, best score first; or why it could not be read."""

    filename: str | None
    width: int | None = Field(description="Upright width in pixels; null where unreadable.")
    height: int | None = Field(description="Upright height in pixels; null where unreadable.")
    truncated: bool = Field(description="More candidates passed `conf` than the model hands out.")
    error: ImageError | None
    detections: list[Detection]


class ModelName(Body):
    """Which model answered."""

    name: str
    version: str = Field(description="First 12 hex digits of the artifact file's sha256.")


class Timings(Body):
    """Milliseconds; each stage is the longest that any image of the request spent in it."""

    decode: float = Field(description="Decoding and letterboxing.")
    queue: float = Field(description="Waiting for a batch.")
    inference: float = Field(description="The inference of the image's batch.")
    postprocess: float = Field(description="NMS, and back to original pixels.")
    total: float = Field(description="From the end of the request's headers to its response.")


class DetectResponse(Body):
    """One result per image, in the order the images came in."""

    model: ModelName
    results: list[ImageResult]
    timings_ms: Timings


class Alive(Body):
    """The answer of a probe that found what it asked for."""

    status: str


class Health(Body):
    """State of the server, and what really runs: null until the model is loaded."""

    status: Literal["starting", "ready", "hung", "draining", "failed"]
    server_version: str
    revision: str | None = Field(
        description="The commit that was built: with `-dirty` where files differed from it, with "
        "`-checkout` where nothing was built; null where it is not known."
    )
    model: str
    version: str | None
    precision: str | None
    reason: str | None = Field(description="Why this precision was chosen.")
    provider: str | None
    device: str | None
    cpu_fallback: str | None = Field(
        description="Why the model runs on the CPU though the device is `auto` and there is a GPU "
        "or ONNX Runtime's build for one; null where that is not so."
    )
    instances: int | None = Field(description="Inferences that may run at the same time.")
    max_batch_size: int | None
    queue_images: int
    max_queue_images: int


class ModelDescription(Body):
    """The artifact's metadata with its parity certificate."""

    version: str
    metadata: Metadata
