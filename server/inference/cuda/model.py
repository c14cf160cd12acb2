"""A model that is loaded on a GPU, or refused: for all input shapes at once, or for each."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from server.errors import ProviderUnavailable, SettingsInvalid
from server.inference.artifact import Artifact
from server.inference.cuda.graphs import GRAPH_CAPTURE
from server.inference.cuda.options import Shape, cuda_providers, tensorrt_providers
from server.inference.cuda.placement import (
    Placement,
    copies_counted,
    nodes_by_provider,
    refuse_unless_on_gpu,
)
from server.inference.cuda.tensorrt import engine_folder, load_libraries
from server.inference.devices import CPU, INSTALL_GPU, TENSORRT, driver_found, gpu_visible
from server.inference.onnx_session import Providers, load, session_options
from server.ort import onnxruntime

_log = logging.getLogger(__name__)


class LoadedOnGpu(NamedTuple):
    """One session on a GPU.

    Attributes:
        session: of ONNX Runtime.
        placement: where its nodes are.
        graphs: it records CUDA graphs.
    """

    session: Any
    placement: Placement
    graphs: bool


@dataclass(frozen=True)
class GpuModel:
    """What is loaded on a GPU, and how.

    Attributes:
        artifact: what.
        provider: `CUDA` or `TENSORRT`.
        gpu: its number, >= 0.
        threads: CPU threads of a call, >= 1.
        sizes: the batch sizes that will come, ascending.
        graphs, cuda_options, tensorrt_cache: as `Session.open` takes them, `graphs` as
            `cuda_graphs`.

    Raises:
        ProviderUnavailable: nothing can run on that provider here.
        SettingsInvalid: as `Session.open` does.
    """

    artifact: Artifact
    provider: str
    gpu: int
    threads: int
    sizes: Sequence[int]
    graphs: bool = False
    cuda_options: Mapping[str, str] | None = None
    tensorrt_cache: Path | None = None

    def __post_init__(self) -> None:
        if self.provider == TENSORRT and self.graphs:
            raise SettingsInvalid("cuda_graphs is for the CUDA provider; device is tensorrt")
        if self.provider not in onnxruntime().get_available_providers():
            raise ProviderUnavailable(
                f"this onnxruntime is built without {self.provider}: {INSTALL_GPU}"
            )
        # Not tried in vain: it took 0.4 s and 200 MB, and ONNX Runtime wrote among our JSON.
        if not gpu_visible() and not driver_found():
            raise ProviderUnavailable(_none_visible(self.provider))
        # What it writes among our JSON is no news (CUDA is no plugin), or raised as well.
        onnxruntime().set_default_logger_severity(4)
        onnxruntime().preload_dlls(directory="")
        if self.provider == TENSORRT:
            load_libraries()

    def shape(self, images: int, height: int, width: int) -> Shape | None:
        """What `load` takes for inputs of a shape: None where one session has all shapes."""
        return (images, height, width, 3) if self.graphs else None

    def load(self, shape: Shape | None) -> LoadedOnGpu:
        """A session for one input shape, or for all.

        Raises:
            ProviderUnavailable: the GPU does not do all the work.
            ArtifactInvalid: its input or output are not those of an artifact.
        """
        try:
            with GRAPH_CAPTURE.call():
                return self._load(shape)
        except ProviderUnavailable as error:
            if gpu_visible():
                raise
            raise ProviderUnavailable(f"{_none_visible(self.provider)}; {error}") from None

    def _load(self, shape: Shape | None) -> LoadedOnGpu:
        if not self.graphs:
            return self._proven(shape, graphs=False)
        try:
            return self._proven(shape, graphs=True)
        except ProviderUnavailable as error:
            # Without graphs this reason is gone; another one is raised again.
            loaded = self._proven(shape, graphs=False)
            _log.warning("no CUDA graphs, calls run without them: %s", error)
            return loaded

    def _proven(self, shape: Shape | None, *, graphs: bool) -> LoadedOnGpu:
        # On the CPU nothing runs of a model of fixed shape, and there may be 40 of them.
        options = session_options(1 if shape else self.threads)
        if shape is not None:
            fix_shape(options, self._dimensions, shape)
        if self.provider == TENSORRT:  # what it built cannot be written as a model
            session = load(self.artifact, options, self._tensorrt)
            placement = Placement(nodes_by_provider(session), {})
        else:
            with copies_counted(options) as copies:
                providers = cuda_providers(self.gpu, graphs=graphs, changes=self.cuda_options)
                session = load(self.artifact, options, providers)
            placement = Placement(nodes_by_provider(session), copies)
        refuse_unless_on_gpu(placement, self.provider, self.gpu, fixed=shape is not None)
        return LoadedOnGpu(session, placement, graphs)

    @cached_property
    def _tensorrt(self) -> Providers:
        metadata = self.artifact.metadata
        cache = engine_folder(self.tensorrt_cache, self.artifact)
        return tensorrt_providers(self.gpu, metadata, self.sizes, cache=cache)

    @cached_property
    def _dimensions(self) -> Sequence[str | int]:
        return input_dimensions(self.artifact)


def input_dimensions(artifact: Artifact) -> Sequence[str | int]:
    """The input's dimensions as the file has them: of each that is free, the name."""
    options = session_options(1)
    options.graph_optimization_level = onnxruntime().GraphOptimizationLevel.ORT_DISABLE_ALL
    (images,) = load(artifact, options, [(CPU, {})]).get_inputs()
    return tuple(images.shape)


def fix_shape(options: Any, dimensions: Sequence[str | int], shape: Shape) -> None:
    """Lets ONNX Runtime work out at the load all that follows from the shape of the input.

    Otherwise it leaves that to the CPU, in each call: 51 of the default weights' nodes. Fixing only
    the batch, or only height and width, leaves some of them, and none may be left in a CUDA graph.

    Args:
        options: of the session.
        dimensions: as `input_dimensions` gives them.
        shape: the only one that the session will take.
    """
    for name, size in zip(dimensions, shape, strict=True):
        if isinstance(name, str):
            options.add_free_dimension_override_by_name(name, size)
    # One plan for the memory, as there is one shape. It takes more (1.07 GB, not 0.88, for the 20
    # shapes of the default weights in float16), but all of it at once: without, the pool grew by a
    # tenth after the warm-up, and twice in each recording of a graph, which ends that.
    options.enable_mem_pattern = True


def _none_visible(provider: str) -> str:
    return (
        f"{provider} was asked for, and no NVIDIA GPU is visible to this process: it needs one "
        "with driver R580 or newer; a container has to be started with --gpus all"
    )
