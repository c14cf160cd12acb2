"""One model on one device, and what it says of where it runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from server.errors import InferenceFailed, SettingsInvalid
from server.host import available_cpus, integer_instructions
from server.inference.artifact import Artifact
from server.inference.cuda.graphs import GRAPH_CAPTURE, BoundRunner, Candidates, Images, Memory
from server.inference.cuda.model import GpuModel, LoadedOnGpu
from server.inference.cuda.options import GPU_BATCH_SIZE, padded_size, padded_sizes
from server.inference.cuda.placement import Placement, nodes_by_provider
from server.inference.devices import CPU, CUDA, TENSORRT, devices_to_try
from server.inference.onnx_session import INPUT, OUTPUT, cpu_options, load
from server.vision.letterbox import PAD_VALUE


class BatchRunner(Protocol):
    """Something that infers batches."""

    def run(self, images: Images) -> Candidates:
        """(B, H, W, 3) uint8 RGB to (B, K, 6) float32."""


class PlainRunner:
    """Each call brings its input and gets an answer of its own; from any thread.

    Args:
        session: of ONNX Runtime.
        sizes: what batches are padded to, ascending; on a CPU none.
    """

    def __init__(self, session: Any, sizes: Sequence[int] = ()) -> None:
        self._session = session
        self._sizes = sizes

    def run(self, images: Images) -> Candidates:
        """As a `BatchRunner` does."""
        if not self._sizes:
            (candidates,) = self._session.run([OUTPUT], {INPUT: images})
            return np.asarray(candidates, np.float32)
        with GRAPH_CAPTURE.call():
            (candidates,) = self._session.run([OUTPUT], {INPUT: padded(images, self._sizes)})
        return np.asarray(candidates[: len(images)], np.float32)


def padded(images: Images, sizes: Sequence[int]) -> Images:
    """A batch with grey images behind its own, up to one of the sizes; as it is where it fits."""
    missing = padded_size(len(images), sizes) - len(images)
    if not missing:
        return images
    grey = np.full((missing, *images.shape[1:]), PAD_VALUE, np.uint8)
    return np.concatenate([images, grey])


class Session:
    """A model that is loaded on one device. Made with `Session.open`.

    `run` may be called from several threads at once. On a CPU with `threads=1` such calls run side
    by side; with more threads, and on a GPU, they bring no speed.

    Attributes:
        provider: the execution provider that really runs the model.
        device: "cpu" or "cuda:N".
        nodes: the graph's nodes by the provider that each was given to, before nodes were fused.
        copies: how many copies between GPU and CPU there are inside the graph, by kind.
        padded_sizes: what batches are padded to, ascending; on a CPU none.
    """

    def __init__(
        self,
        artifact: Artifact,
        runs: BatchRunner,
        device: str,
        provider: str,
        placement: Placement,
        sizes: Sequence[int] = (),
    ) -> None:
        self._metadata = artifact.metadata
        self._runs: BatchRunner | None = runs
        self.provider = provider
        self.device = device
        self.nodes = placement.nodes
        self.copies = placement.copies
        self.padded_sizes = tuple(sizes)

    @property
    def nodes_by_provider(self) -> dict[str, int]:
        """How many graph nodes each provider was given."""
        return {provider: len(nodes) for provider, nodes in self.nodes.items()}

    @property
    def captured(self) -> dict[tuple[int, int, int, int], bool]:
        """Whether each input shape that came is replayed from a CUDA graph; empty without graphs.

        Where one is not, a warning in the log says why.
        """
        return self._runs.captured if isinstance(self._runs, BoundRunner) else {}

    @classmethod
    def open(
        cls,
        artifact: Artifact,
        *,
        device: str,
        threads: int | None = None,
        spinning: bool = False,
        max_batch_size: int = GPU_BATCH_SIZE,
        cuda_graphs: bool = False,
        cuda_options: Mapping[str, str] | None = None,
        tensorrt_cache: Path | None = None,
    ) -> Self:
        """Loads a model on exactly this device.

        Args:
            artifact: what to load.
            device: "cpu", "cuda", "cuda:N" or "tensorrt".
            threads: CPU threads of one run, >= 1; by default every CPU that affinity and the
                container's quota leave.
            spinning: the threads of one run busily wait for each other: faster where nothing else
                wants the CPUs during a run, slower where something does. Only on a CPU.
            max_batch_size: images of one call, >= 1. Larger batches run as well, but a GPU is only
                prepared for the sizes up to this one.
            cuda_graphs: a CUDA GPU has a session for each input shape, in which every node is on
                the GPU, and replays its kernels as one graph. Each has weights and activations of
                its own. Otherwise one session has all shapes, and copies each batch.
            cuda_options: of the CUDA provider, in place of ours; for measurements.
            tensorrt_cache: the folder for what TensorRT builds, by default
                `~/.cache/yolov8-fla/tensorrt`.

        Raises:
            ProviderUnavailable: the model does not run on that device.
            ArtifactInvalid: ONNX Runtime cannot load the model, or its input or output are not
                those of an artifact.
            SettingsInvalid: there is no such device name, or it is not one device ("auto"); or the
                cache cannot be written.
        """
        device, *others = devices_to_try(device)
        if others:
            raise SettingsInvalid("device is 'auto', which stands for several: `open_on_first`")
        threads = threads or available_cpus()
        if device != "cpu":
            model = GpuModel(
                artifact,
                provider=TENSORRT if device == "tensorrt" else CUDA,
                gpu=int(device.partition(":")[2] or 0),
                threads=threads,
                sizes=padded_sizes(max_batch_size),
                graphs=cuda_graphs,
                cuda_options=cuda_options,
                tensorrt_cache=tensorrt_cache,
            )
            return cls._on_gpu(artifact, model)
        options = cpu_options(
            artifact.metadata.precision,
            threads,
            spinning=spinning,
            exact_integers=integer_instructions() is not None,
        )
        session = load(artifact, options, [(CPU, {})])
        placement = Placement(nodes_by_provider(session), {})
        return cls(artifact, PlainRunner(session), "cpu", CPU, placement)

    @classmethod
    def _on_gpu(cls, artifact: Artifact, model: GpuModel) -> Self:
        # The largest shape first, as at the warm-up: what has no memory fails at once.
        height, width = max(artifact.metadata.buckets)
        first = model.shape(model.sizes[-1], height, width)
        loaded = {first: model.load(first)}

        def open_shape(shape: tuple[int, int, int, int]) -> LoadedOnGpu:
            key = model.shape(*shape[:3])
            if key not in loaded:
                loaded[key] = model.load(key)
            return loaded[key]

        def candidates(hw: tuple[int, int]) -> int:
            return min(artifact.metadata.max_candidates, artifact.metadata.anchors(hw))

        runs: BatchRunner = (
            BoundRunner(open_shape, candidates, Memory("cuda", model.gpu), model.sizes)
            if model.graphs
            else PlainRunner(loaded[first].session, model.sizes)
        )
        placement = loaded[first].placement
        return cls(artifact, runs, f"cuda:{model.gpu}", model.provider, placement, model.sizes)

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Infers one batch.

        Args:
            images: (B, H, W, 3) uint8, RGB, letterboxed; (H, W) one of the artifact's buckets.

        Returns:
            (B, K, 6) float32, best first: x1, y1, x2, y2 in input pixels, score, class id.

        Raises:
            InferenceFailed: ONNX Runtime raised; what, is the cause.
        """
        assert self._runs is not None, "the session is closed"
        try:
            return self._runs.run(images)
        except Exception as error:  # ONNX Runtime has no common base of its exceptions
            raise InferenceFailed(f"a batch of {len(images)} failed on {self.provider}") from error

    def warm_up(self, batch_sizes: Sequence[int]) -> None:
        """Runs grey images through every input shape, so that no request meets a new one.

        Args:
            batch_sizes: the batch sizes that will come, each >= 1. A GPU runs what they are padded
                to, the largest first, and twice: its pool of memory took 5 % more the second time.
                The CPU, which prepares nothing per size, runs only the smallest.

        Raises:
            InferenceFailed: as `run` does.
        """
        sizes = sorted({padded_size(each, self.padded_sizes) for each in batch_sizes}, reverse=True)
        for size in sizes[-1:] if self.device == "cpu" else sizes * 2:
            for height, width in self._metadata.buckets:
                self.run(np.full((size, height, width, 3), PAD_VALUE, np.uint8))

    def close(self) -> None:
        """Releases the model's memory; `run` is an error afterwards."""
        self._runs = None
