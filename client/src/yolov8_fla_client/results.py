"""What the server answers, as values: the fields are those of its OpenAPI description."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import supervision
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in pixels of the upright original image; x to the right, y down."""

    x1: float
    y1: float
    x2: float
    y2: float


@dataclass(frozen=True, slots=True)
class Detection:
    """One object that was found; its score is in 0..1."""

    class_id: int
    class_name: str
    score: float
    box: Box


@dataclass(frozen=True, slots=True)
class ImageError:
    """Why there are no detections of an image.

    Attributes:
        code: stable name of the fault: the server's, or "unreadable_file" for a file that could
            not be read here.
        detail: the same for people.
    """

    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class ModelName:
    """Which model answered; the version is the first 12 hex digits of its file's sha256."""

    name: str
    version: str


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds of a request; each stage is the longest that one of its images spent in it."""

    decode: float
    queue: float
    inference: float
    postprocess: float
    total: float


@dataclass(frozen=True, slots=True)
class ImageResult:
    """What was found in one image, best score first; or why it could not be read.

    Attributes:
        filename: the image's name as it was given here; None where it has none.
        width: upright, in pixels; None where the image could not be read.
        height: as `width`.
        truncated: more candidates passed `conf` than the model hands out.
        error: None where the image was read.
        detections: best score first; empty where there is an error.
        model: which one answered; None where the server was not asked, or refused.
        timings_ms: of the request that the image was in; None as for `model`.
    """

    filename: str | None
    width: int | None
    height: int | None
    truncated: bool
    error: ImageError | None
    detections: tuple[Detection, ...]
    model: ModelName | None = None
    timings_ms: Timings | None = None

    @property
    def ok(self) -> bool:
        """Whether the image was read; what has no error may still have no detections."""
        return self.error is None

    @property
    def boxes(self) -> NDArray[np.float32]:
        """(N, 4) float32, xyxy in upright original pixels."""
        import numpy as np

        rows = [(d.box.x1, d.box.y1, d.box.x2, d.box.y2) for d in self.detections]
        return np.array(rows, np.float32).reshape(-1, 4)

    @property
    def scores(self) -> NDArray[np.float32]:
        """(N,) float32, 0..1, falling."""
        import numpy as np

        return np.array([each.score for each in self.detections], np.float32)

    @property
    def class_ids(self) -> NDArray[np.int64]:
        """(N,) int64."""
        import numpy as np

        return np.array([each.class_id for each in self.detections], np.int64)

    def to_supervision(self) -> supervision.Detections:
        """The detections as supervision's, with the names in `data["class_name"]`.

        Raises:
            ModuleNotFoundError: supervision is not installed.
        """
        try:
            import supervision
        except ModuleNotFoundError as error:
            if error.name != "supervision":
                raise
            raise ModuleNotFoundError(
                "to_supervision() needs the package supervision: pip install supervision",
                name="supervision",
            ) from None
        import numpy as np

        names = np.array([each.class_name for each in self.detections], np.str_)
        return supervision.Detections(
            xyxy=self.boxes,
            confidence=self.scores,
            class_id=self.class_ids,
            data={"class_name": names},
        )


@dataclass(frozen=True, slots=True)
class AnnotatedImage:
    """One image of a stream with its detections drawn in, or why there is none.

    Attributes:
        filename: the image's name as it was given here; None where it has none.
        image: a whole JPEG or PNG file, by `media_type`; empty where there is an error.
        media_type: "image/jpeg" or "image/png"; None where there is an error.
        error: None where there is an image.
    """

    filename: str | None
    image: bytes
    media_type: str | None
    error: ImageError | None = None


@dataclass(frozen=True, slots=True)
class Health:
    """State of the server, and what really runs: None until the model is loaded.

    Attributes:
        status: "starting", "ready", "hung", "draining" or "failed".
        server_version: of the package.
        revision: the commit that was built.
        model: the model's name.
        version: the model's, as in `ModelName`.
        precision: "fp32", "fp16" or "int8".
        reason: why this precision was chosen.
        provider: ONNX Runtime's execution provider.
        device: what it runs on.
        cpu_fallback: why the model runs on the CPU though a GPU was to be expected.
        instances: inferences that may run side by side.
        max_batch_size: images of one inference at most.
        queue_images: images that wait now.
        max_queue_images: that may wait.
    """

    status: str
    server_version: str
    revision: str | None
    model: str
    version: str | None
    precision: str | None
    reason: str | None
    provider: str | None
    device: str | None
    cpu_fallback: str | None
    instances: int | None
    max_batch_size: int | None
    queue_images: int
    max_queue_images: int


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """The model that is served.

    Attributes:
        version: as in `ModelName`.
        metadata: the artifact's, with its parity certificate, as JSON has it.
    """

    version: str
    metadata: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The model's name."""
        return str(self.metadata["name"])

    @property
    def class_names(self) -> tuple[str, ...]:
        """By class id."""
        return tuple(str(name) for name in self.metadata["class_names"])
