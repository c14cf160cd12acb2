"""One ONNX Runtime session, and the proof of where it runs."""

import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from server.artifact import Artifact
from server.cpus import available_cpus
from server.errors import ArtifactInvalid, InferenceFailed, ProviderUnavailable, SettingsInvalid
from server.letterbox import PAD_VALUE

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"

# A GPU session may leave shape arithmetic on the CPU, but none of these.
_HEAVY_OPERATORS = frozenset({"Conv", "FusedConv", "QLinearConv", "Gemm", "MatMul", "FusedMatMul"})

_log = logging.getLogger(__name__)


class Session:
    """A model that is loaded on one device. Made with `Session.open`.

    `run` is safe to call from one thread at a time; more threads bring no speed.

    Attributes:
        provider: the execution provider that really runs the model.
        device: "cpu" or "cuda:N".
        nodes_by_provider: how many graph nodes each provider was given.
    """

    def __init__(self, artifact: Artifact, session: Any, device: str) -> None:
        self._session: Any = session
        self._metadata = artifact.metadata
        self.provider: str = session.get_providers()[0]
        self.device = device
        self.nodes_by_provider = {
            provider: nodes.total() for provider, nodes in _assignment(session).items()
        }

    @classmethod
    def open(
        cls, artifact: Artifact, *, device: str = "auto", intra_op_threads: int | None = None
    ) -> Self:
        """Loads a model.

        Args:
            artifact: what to load.
            device: "cpu", "cuda", "cuda:N", "tensorrt", or "auto": CUDA where it works, else
                the CPU, with a logged warning when a GPU is left unused.
            intra_op_threads: CPU threads of one run, >= 1; by default every CPU that affinity
                and the container's quota leave.

        Raises:
            ProviderUnavailable: the model does not run on the device that was asked for.
            ArtifactInvalid: ONNX Runtime cannot load the model, or its input or output are not
                those of an artifact.
            SettingsInvalid: there is no such device name.
        """
        match = re.fullmatch(r"(auto|cpu|tensorrt|cuda(?::(\d+))?)", device)
        if match is None:
            raise SettingsInvalid(
                f"device is {device!r}, it must be auto, cpu, cuda, cuda:N or tensorrt"
            )
        threads = intra_op_threads or available_cpus()
        if device == "cpu":
            return cls._on_cpu(artifact, threads)
        gpu = int(match[2] or 0)
        provider = TENSORRT if device == "tensorrt" else CUDA
        try:
            return cls._on_gpu(artifact, threads, provider, gpu)
        except ProviderUnavailable as error:
            if device != "auto":
                raise
            if _gpu_visible():
                _log.warning("a GPU is visible but NOT used, the model runs on the CPU: %s", error)
            else:
                _log.info("no GPU is visible, the model runs on the CPU")
        return cls._on_cpu(artifact, threads)

    @classmethod
    def _on_cpu(cls, artifact: Artifact, threads: int) -> Self:
        session = _load(artifact, threads, [(CPU, {})])
        return cls(artifact, session, "cpu")

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
        ort = _onnxruntime()
        if provider not in ort.get_available_providers():
            raise ProviderUnavailable(
                f"this onnxruntime is built without {provider}; uninstall `onnxruntime` and "
                "install `yolov8-fla[gpu]` (the two must not be installed together)"
            )
        ort.preload_dlls(directory="")
        session = _load(artifact, threads, providers)
        on_cpu = _assignment(session).get(CPU, Counter())
        heavy = sorted(_HEAVY_OPERATORS & on_cpu.keys())
        if session.get_providers()[0] != provider or heavy:
            raise ProviderUnavailable(
                f"{provider} was asked for on GPU {gpu}, but ONNX Runtime runs "
                f"{', '.join(heavy) if heavy else 'the model'} on the CPU; install "
                "`yolov8-fla[gpu]` with its CUDA 13 and cuDNN 9 libraries, driver R580 or newer"
            )
        return cls(artifact, session, f"cuda:{gpu}")

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


def _onnxruntime() -> Any:
    # Before the library is loaded: its Linux wheels send telemetry from the first session on.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


def _load(artifact: Artifact, threads: int, providers: list[tuple[str, dict[str, Any]]]) -> Any:
    ort = _onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors; warnings about shape nodes on the CPU are expected
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning threads burn the quota that decoding needs (onnxruntime#7207, #10113).
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    # An arena would keep the memory of the largest batch ever run: after a batch of 8 at 640 x 640
    # YOLOv8n held 272 MB with it and 163 MB without, at the same speed.
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
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


def _assignment(session: Any) -> dict[str, Counter[str]]:
    """Counts the graph's operators by the provider that ONNX Runtime gave them to."""
    counts: dict[str, Counter[str]] = {}
    for subgraph in session.get_provider_graph_assignment_info():
        operators = counts.setdefault(subgraph.ep_name, Counter())
        operators.update(node.op_type for node in subgraph.get_nodes())
    return counts


def _gpu_visible(devices: Path = Path("/dev")) -> bool:
    # The second is a GPU under WSL.
    return any(devices.glob("nvidia[0-9]*")) or (devices / "dxg").exists()
