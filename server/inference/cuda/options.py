"""How a GPU session runs: what may be chosen, and what the providers are told of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from server.errors import SettingsInvalid
from server.inference.artifact import Metadata
from server.inference.devices import CPU, CUDA, TENSORRT
from server.inference.onnx_session import Providers

Shape = tuple[int, int, int, int]  # of an input: images, height, width, 3

GPU_BATCH_SIZE = 8


@dataclass(frozen=True, slots=True)
class CudaOptions:
    """What a session on a GPU may do in more than one way.

    The defaults are the careful ones: nothing here has been measured on a GPU yet. Every field but
    `calls` and `instances` is for the CUDA provider alone.

    Attributes:
        calls: each step adds one thing to the one before. "plain": ONNX Runtime copies each batch
            and allocates its answer, as most of its users let it do. "bound": buffers for each
            input shape that stay where they are, filled from pinned memory. "fixed": for each
            shape a session of its own, in which nothing is left to be worked out from the shape:
            every node is on the GPU; it has weights and activations of its own, too. "captured":
            each shape's kernels recorded once, as a CUDA graph, and launched as one. To be
            measured: what each is worth, and the memory that the last two take.
        conv_search: how cuDNN chooses a convolution's algorithm at each new shape: "HEURISTIC"
            asks it (31 ms over 16 shapes), "EXHAUSTIVE" tries all (10 s: PaddleX#5057), "DEFAULT"
            takes the first (slow: onnxruntime#22705). To be measured: what EXHAUSTIVE brings.
        conv_max_workspace: the search may take any amount of scratch memory.
        fuse_conv_bias: a convolution, its bias and activation in one kernel, built at run time. To
            be measured.
        prefer_nhwc: convolutions with channels last, as float16 tensor cores take them. Only from
            "fixed" on. To be measured.
        tf32: float32 products in TensorFloat-32, faster and with 10 bits of mantissa; the
            certificate of parity was given for float32.
        arena: how the pool of memory grows: by what was asked for, or by powers of two, which can
            hold twice what the largest batch needs.
        memory_limit_bytes: of each session's pool; None sets none.
        instances: sessions side by side, so that one copies while another computes; each has
            streams, buffers and weights of its own. >= 1. To be measured.

    Raises:
        SettingsInvalid: they do not go together.
    """

    calls: Literal["plain", "bound", "fixed", "captured"] = "plain"
    conv_search: Literal["HEURISTIC", "EXHAUSTIVE", "DEFAULT"] = "HEURISTIC"
    conv_max_workspace: bool = True
    fuse_conv_bias: bool = False
    prefer_nhwc: bool = False
    tf32: bool = False
    arena: Literal["kSameAsRequested", "kNextPowerOfTwo"] = "kSameAsRequested"
    memory_limit_bytes: int | None = None
    instances: int = 1

    def __post_init__(self) -> None:
        if self.prefer_nhwc and not self.fixed:
            # Its layout moves the shape arithmetic of the default model to the GPU, and 19 shapes
            # back from there in each call, for every one of which the CPU waits.
            raise SettingsInvalid("prefer_nhwc needs calls 'fixed' or 'captured'")
        if self.instances < 1:
            raise SettingsInvalid(f"instances is {self.instances}, it must be 1 or more")

    @property
    def fixed(self) -> bool:
        """Whether each input shape has a session of its own."""
        return self.calls in ("fixed", "captured")


def padded_sizes(max_batch_size: int) -> tuple[int, ...]:
    """The batch sizes that run on a GPU: 1, 2, 4, 8, 16 and so on, and the largest itself.

    Each size is a shape: with a search of algorithms, buffers and perhaps a session of its own.
    """
    powers = [1 << bit for bit in range(max_batch_size.bit_length())]
    return tuple(sorted({*powers, max_batch_size}))


def padded_size(images: int, sizes: Sequence[int]) -> int:
    """The smallest of the ascending sizes that holds so many images; without one, their number."""
    return next((size for size in sizes if size >= images), images)


def cuda_providers(options: CudaOptions, gpu: int, *, graphs: bool = False) -> Providers:
    """The CUDA provider on one GPU, and the CPU for what it leaves.

    Args:
        options: how.
        gpu: its number, >= 0.
        graphs: records CUDA graphs. ONNX Runtime then refuses a model that does not run on the GPU
            as a whole.
    """
    cuda: dict[str, Any] = {
        "device_id": gpu,
        "cudnn_conv_algo_search": options.conv_search,
        "cudnn_conv_use_max_workspace": _flag(options.conv_max_workspace),
        "fuse_conv_bias": _flag(options.fuse_conv_bias),
        "prefer_nhwc": _flag(options.prefer_nhwc),
        "use_tf32": _flag(options.tf32),
        "arena_extend_strategy": options.arena,
        "enable_cuda_graph": _flag(graphs),
    }
    if options.memory_limit_bytes is not None:
        cuda["gpu_mem_limit"] = str(options.memory_limit_bytes)
    return [(CUDA, cuda), (CPU, {})]


def tensorrt_providers(
    options: CudaOptions,
    gpu: int,
    metadata: Metadata,
    sizes: Sequence[int],
    *,
    cache: Path | None,
) -> Providers:
    """TensorRT on one GPU, and behind it what `cuda_providers` gives.

    Args:
        options: how; of them, TensorRT has only `calls`.
        gpu: its number, >= 0.
        metadata: of the artifact: its precision, and the shapes that will come.
        sizes: the batch sizes that will come, ascending.
        cache: an existing folder for what is built, of this artifact alone; None keeps nothing.
    """
    tensorrt: dict[str, Any] = {
        "device_id": gpu,
        # Texts, "True" or "False": anything else is refused here, unlike by CUDA. Without the
        # first, TensorRT computes in float32 whatever the weights are.
        "trt_fp16_enable": str(metadata.precision == "fp16"),
        "trt_int8_enable": str(metadata.precision == "int8"),  # the scales are in the graph
    }
    if cache is not None:
        tensorrt |= {
            "trt_engine_cache_enable": "True",
            "trt_engine_cache_path": str(cache),
            "trt_timing_cache_enable": "True",
            "trt_timing_cache_path": str(cache),
        }
    if not options.fixed:
        # One engine for all shapes. Without a range it would be built again at each that is new.
        heights, widths = zip(*metadata.buckets, strict=True)
        tensorrt |= {
            "trt_profile_min_shapes": _profile(sizes[0], min(heights), min(widths)),
            "trt_profile_opt_shapes": _profile(sizes[-1], *max(metadata.buckets, key=_pixels)),
            "trt_profile_max_shapes": _profile(sizes[-1], max(heights), max(widths)),
        }
    return [(TENSORRT, tensorrt), *cuda_providers(options, gpu)]


def _flag(value: bool) -> str:
    return "1" if value else "0"


def _profile(images: int, height: int, width: int) -> str:
    return f"images:{images}x{height}x{width}x3"


def _pixels(hw: tuple[int, int]) -> int:
    return hw[0] * hw[1]
