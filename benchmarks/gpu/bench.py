"""What every part of the GPU benchmark starts from: the job, the inputs, sessions and canvases."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.manifest import Inputs, read_inputs
from benchmarks.gpu.rounds import Deadline
from server.host import available_cpus
from server.inference.artifact import Artifact, load_artifact
from server.inference.detector import prepare_encoded, stacked
from server.inference.session import Session
from server.vision.nms import DetectParameters

Figures = dict[str, Any]
MAX_PIXELS = 50_000_000
PARAMETERS = DetectParameters(conf=0.25, max_det=300)


@dataclass(frozen=True, slots=True)
class Job:
    """What one part is told, as JSON can carry it.

    Attributes:
        device: "cpu", "cuda", "cuda:N".
        inputs: folder.
        deadline_s: on `time.monotonic`: nothing new is begun later.
        batches: sizes that are measured, ascending.
        cuda: options of the CUDA provider, in place of the server's.
        http_workers: arrangements of the server.
        server_flags: of every server.
        generators: processes that make load.
        clients: numbers of clients to find the saturation with.
        known: figures of parts that were measured before.
    """

    device: str
    inputs: str
    deadline_s: float
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    cuda: Mapping[str, str] = field(default_factory=dict)
    http_workers: tuple[int, ...] = (1,)
    server_flags: tuple[str, ...] = ()
    generators: int = 1
    clients: tuple[int, ...] = (32, 64, 128, 256)
    known: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Reads what `asdict` gave, after JSON made lists of its tuples."""
        read: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**read)

    def as_values(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Bench:
    """A job, with what it is done with.

    Args:
        job: what to do.

    Attributes:
        deadline: nothing new is begun later.
        inputs: models, blocks and images.
        on_gpu: models run on one.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.deadline = Deadline(job.deadline_s)
        self.inputs: Inputs = read_inputs(Path(job.inputs))
        self.on_gpu = job.device != "cpu"

    @property
    def precisions(self) -> list[str]:
        """Those that the model with attention is there in and the device computes in."""
        known = ("fp32", "fp16") if self.on_gpu else ("fp32", "fp16", "int8")
        return [each for each in known if f"fla-{each}" in self.inputs.models]

    @property
    def served(self) -> str:
        """The name of the model that is served: float16 on a GPU."""
        return "fla-fp16" if self.on_gpu and "fla-fp16" in self.inputs.models else "fla-fp32"

    @cached_property
    def images(self) -> list[bytes]:
        """All JPEG files."""
        return [path.read_bytes() for path in self.inputs.images]

    def artifact(self, name: str) -> Artifact:
        """A model as it is."""
        return _artifact(self.inputs.models[name])

    def square(self, name: str) -> Artifact:
        """The same with its largest input shape alone, so that one shape is prepared."""
        return with_buckets(self.artifact(name), self.artifact(name).metadata.buckets[:1])

    def met(self, name: str) -> Artifact:
        """The same with the input shapes that the images have alone."""
        artifact = self.artifact(name)
        shapes = {self.bucket_of(each, artifact) for each in self.images}
        kept = [each for each in artifact.metadata.buckets if each in shapes]
        return with_buckets(artifact, kept)

    @staticmethod
    def bucket_of(image: bytes, artifact: Artifact) -> tuple[int, int]:
        """The input shape of an encoded image."""
        return prepare_encoded(image, artifact.metadata, max_pixels=MAX_PIXELS, dct_scaling=True)[
            0
        ].bucket_hw

    @contextmanager
    def session(
        self,
        artifact: Artifact,
        max_batch_size: int,
        *,
        graphs: bool = False,
        changes: Mapping[str, str] | None = None,
        device: str | None = None,
    ) -> Iterator[Session]:
        """A model that is loaded for as long as it is used.

        Args:
            artifact: which.
            max_batch_size: images of the largest call.
            graphs: replays CUDA graphs.
            changes: of the job's CUDA options.
            device: another than the job's.
        """
        session = Session.open(
            artifact,
            device=device or self.job.device,
            threads=None if self.on_gpu else available_cpus(),
            max_batch_size=max_batch_size,
            cuda_graphs=graphs,
            cuda_options={**self.job.cuda, **(changes or {})},
        )
        try:
            yield session
        finally:
            session.close()

    def canvases(self, artifact: Artifact, images: int) -> NDArray[np.uint8]:
        """The images in turn, letterboxed: (images, H, W, 3) uint8 of the largest input shape.

        Images and not noise or zeros: what a GPU computes has a part in how fast it does.
        """
        square = with_buckets(artifact, artifact.metadata.buckets[:1]).metadata
        some = [
            prepare_encoded(each, square, max_pixels=MAX_PIXELS, dct_scaling=True)[0].canvas
            for each in self.images[:images]
        ]
        return np.ascontiguousarray(stacked(list(islice(cycle(some), images))))


def with_buckets(artifact: Artifact, buckets: Sequence[tuple[int, int]]) -> Artifact:
    """A model as if it had been made for these input shapes alone."""
    metadata = artifact.metadata.model_copy(update={"buckets": tuple(buckets)})
    return replace(artifact, metadata=metadata)


@cache
def _artifact(path: Path) -> Artifact:
    return load_artifact(path)
