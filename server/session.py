"""One ONNX Runtime session, and the proof of where it runs."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from server.artifact import Artifact
from server.cpus import available_cpus, integer_instructions
from server.devices import (
    CPU,
    CUDA,
    INSTALL_GPU,
    TENSORRT,
    devices_to_try,
    driver_found,
    gpu_visible,
)
from server.errors import ArtifactInvalid, InferenceFailed, ProviderUnavailable, SettingsInvalid
from server.letterbox import PAD_VALUE
from server.runtime import onnxruntime

# A GPU session may leave shape arithmetic on the CPU, but none of these.
_HEAVY_OPERATORS = frozenset({"Conv", "FusedConv", "QLinearConv", "Gemm", "MatMul", "FusedMatMul"})


class Node(NamedTuple):
    """One node of the graph that runs, as ONNX Runtime's optimisation left it."""

    name: str
    operator: str


class Session:
    """A model that is loaded on one device. Made with `Session.open`.

    `run` may be called from several threads at once. On a CPU with `threads=1` such calls run side
    by side; with more threads, and on a GPU, they bring no speed.

    Attributes:
        provider: the execution provider that really runs the model.
        device: "cpu" or "cuda:N".
        nodes: the graph's nodes by the provider that each was given to.
    """

    def __init__(self, artifact: Artifact, session: Any, device: str) -> None:
        self._session: Any = session
        self._metadata = artifact.metadata
        self.provider: str = session.get_providers()[0]
        self.device = device
        self.nodes = _nodes_by_provider(session)

    @property
    def nodes_by_provider(self) -> dict[str, int]:
        """How many graph nodes each provider was given."""
        return {provider: len(nodes) for provider, nodes in self.nodes.items()}

    @classmethod
    def open(
        cls, artifact: Artifact, *, device: str, threads: int | None = None, spinning: bool = False
    ) -> Self:
        """Loads a model on exactly this device.

        Args:
            artifact: what to load.
            device: "cpu", "cuda", "cuda:N" or "tensorrt".
            threads: CPU threads of one run, >= 1; by default every CPU that affinity and the
                container's quota leave.
            spinning: the threads of one run busily wait for each other: faster where nothing else
                wants the CPUs during a run, slower where something does. Only on a CPU.

        Raises:
            ProviderUnavailable: the model does not run on that device.
            ArtifactInvalid: ONNX Runtime cannot load the model, or its input or output are not
                those of an artifact.
            SettingsInvalid: there is no such device name, or it is not one device ("auto").
        """
        device, *others = devices_to_try(device)
        if others:
            raise SettingsInvalid("device is 'auto', which stands for several: `open_on_first`")
        threads = threads or available_cpus()
        if device == "cpu":
            options = cpu_options(
                artifact.metadata.precision,
                threads,
                spinning=spinning,
                exact_integers=integer_instructions() is not None,
            )
            return cls(artifact, _load(artifact, options, [(CPU, {})]), "cpu")
        gpu = int(device.partition(":")[2] or 0)
        return cls._on_gpu(artifact, threads, TENSORRT if device == "tensorrt" else CUDA, gpu)

    @classmethod
    def _on_gpu(cls, artifact: Artifact, threads: int, provider: str, gpu: int) -> Self:
        cuda_options = {
            "device_id": gpu,
            # EXHAUSTIVE took 10 s over 16 new shapes, HEURISTIC 31 ms (PaddleX#5057).
            "cudnn_conv_algo_search": "HEURISTIC",
            # Powers of two would keep up to twice the memory of the largest batch.
            "arena_extend_strategy": "kSameAsRequested",
            # The parity certificate was given for float32; speed is what fp16 artifacts are for.
            "use_tf32": 0,
        }
        providers: list[tuple[str, dict[str, Any]]] = [(CUDA, cuda_options), (CPU, {})]
        if provider == TENSORRT:
            providers.insert(0, (TENSORRT, {"device_id": gpu}))
        ort = onnxruntime()
        if provider not in ort.get_available_providers():
            raise ProviderUnavailable(
                f"this onnxruntime is built without {provider}: {INSTALL_GPU}"
            )
        # Not tried in vain: it took 0.4 s and 200 MB, and ONNX Runtime wrote among our JSON.
        if not gpu_visible() and not driver_found():
            raise ProviderUnavailable(_none_visible(provider))
        ort.preload_dlls(directory="")
        loaded = _load(artifact, _options(threads), providers)
        session = cls(artifact, loaded, f"cuda:{gpu}")
        on_cpu = {node.operator for node in session.nodes.get(CPU, ())}
        heavy = sorted(_HEAVY_OPERATORS & on_cpu)
        if session.provider != provider or heavy:
            if not gpu_visible():
                raise ProviderUnavailable(_none_visible(provider))
            raise ProviderUnavailable(
                f"{provider} was asked for on GPU {gpu}, but ONNX Runtime runs "
                f"{', '.join(heavy) if heavy else 'the model'} on the CPU; it needs driver R580 or "
                "newer, CUDA 13 and cuDNN 9 (`python -m server doctor` says what is missing): "
                f"{INSTALL_GPU}"
            )
        return session

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Infers one batch.

        Args:
            images: (B, H, W, 3) uint8, RGB, letterboxed; (H, W) one of the artifact's buckets.

        Returns:
            (B, K, 6) float32, best first: x1, y1, x2, y2 in input pixels, score, class id.

        Raises:
            InferenceFailed: ONNX Runtime raised; what, is the cause.
        """
        assert self._session is not None, "the session is closed"
        try:
            (candidates,) = self._session.run(["candidates"], {"images": images})
        except Exception as error:  # ONNX Runtime has no common base of its exceptions
            raise InferenceFailed(f"a batch of {len(images)} failed on {self.provider}") from error
        return np.asarray(candidates, np.float32)

    def warm_up(self, batch_sizes: Sequence[int]) -> None:
        """Runs grey images through every input shape, so that no request meets a new one.

        Args:
            batch_sizes: the batch sizes that will come, each >= 1. A GPU runs all of them,
                the largest first; the CPU, which prepares nothing per size, only the smallest.

        Raises:
            InferenceFailed: as `run` does.
        """
        sizes = sorted(batch_sizes, reverse=True)
        for size in sizes[-1:] if self.device == "cpu" else sizes:
            for height, width in self._metadata.buckets:
                self.run(np.full((size, height, width, 3), PAD_VALUE, np.uint8))

    def close(self) -> None:
        """Releases the model's memory; `run` is an error afterwards."""
        self._session = None


def _none_visible(provider: str) -> str:
    return (
        f"{provider} was asked for, and no NVIDIA GPU is visible to this process: it needs one "
        "with driver R580 or newer; a container has to be started with --gpus all"
    )


def _options(threads: int, *, spinning: bool = False) -> Any:
    options = onnxruntime().SessionOptions()
    options.log_severity_level = 3  # errors; warnings about shape nodes on the CPU are expected
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning threads burn the quota that decoding needs (onnxruntime#7207, #10113).
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    # A plan of the memory is made for each shape that comes, and kept.
    options.enable_mem_pattern = False
    options.enable_cpu_mem_arena = False
    return options


def cpu_options(
    precision: str, threads: int, *, spinning: bool = False, exact_integers: bool = True
) -> Any:
    """The settings of a session on a CPU.

    Args:
        precision: of the artifact.
        threads: as `Session.open` takes them.
        spinning: likewise.
        exact_integers: the CPU has instructions that sum products of int8 in 32 bits.
    """
    options = _options(threads, spinning=spinning)
    # 5 to 8 % faster, and smaller: after every bucket of up to 480 x 480, one image a call from two
    # threads, YOLOv8n held 154 MB with an arena and 213 MB without (batches of 8: 295 and 557),
    # because the C library keeps what it was given back, for every thread.
    options.enable_cpu_mem_arena = True
    # What finds them at each load compares all tensors with all others: half of the load's time
    # (104 ms instead of 205). With an arena, calls are as fast without, and take little more
    # memory: on two threads 75 MB and not 70, in batches of 8 222 and not 174 (int8 156 and 173).
    options.enable_mem_reuse = False
    if spinning:
        # Only during a run: between two, nobody burns the CPUs.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        # Work is handed out in shrinking pieces, so that no thread waits for the slowest.
        options.add_session_config_entry("session.dynamic_block_base", "4")
    if precision == "int8" and not exact_integers:
        # ONNX Runtime's fast way saturates pairs of products at 16 bits then, and detections
        # change. Not otherwise: this is slower, and ONNX Runtime does it on CPUs with VNNI too.
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def _load(artifact: Artifact, options: Any, providers: list[tuple[str, dict[str, Any]]]) -> Any:
    ort = onnxruntime()
    try:
        session = ort.InferenceSession(str(artifact.path), options, providers=providers)
    except Exception as error:  # ONNX Runtime has no common base of its exceptions
        if providers[0][0] != CPU:
            raise ProviderUnavailable(f"{providers[0][0]} cannot load the model: {error}") from None
        raise ArtifactInvalid(f"{artifact.path}: ONNX Runtime cannot load it: {error}") from None
    signature = [(each.name, each.type) for each in (*session.get_inputs(), *session.get_outputs())]
    if signature != [("images", "tensor(uint8)"), ("candidates", "tensor(float)")]:
        raise ArtifactInvalid(
            f"{artifact.path}: an artifact maps images (uint8) to candidates (float), "
            f"this model has {signature}"
        )
    return session


def _nodes_by_provider(session: Any) -> dict[str, tuple[Node, ...]]:
    nodes: dict[str, tuple[Node, ...]] = {}
    for subgraph in session.get_provider_graph_assignment_info():
        found = tuple(Node(node.name, node.op_type) for node in subgraph.get_nodes())
        nodes[subgraph.ep_name] = nodes.get(subgraph.ep_name, ()) + found
    return nodes
