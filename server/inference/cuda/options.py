"""How a session runs on a GPU: the options of its providers, and the batch sizes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from server.inference.artifact import Metadata
from server.inference.devices import CPU, CUDA, TENSORRT
from server.inference.onnx_session import Providers

Shape = tuple[int, int, int, int]  # of an input: images, height, width, 3

GPU_BATCH_SIZE = 8


# The careful choices: nothing here has been measured on a GPU yet.
CUDA_OPTIONS = {
    # "HEURISTIC" asks cuDNN for a convolution's algorithm at each new shape (31 ms over 16 shapes),
    # "EXHAUSTIVE" tries all (10 s: PaddleX#5057), "DEFAULT" takes the first (slow:
    # onnxruntime#22705).
    "cudnn_conv_algo_search": "HEURISTIC",
    "cudnn_conv_use_max_workspace": "1",  # the search may take any amount of scratch memory
    # TensorFloat-32 is faster and has 10 bits of mantissa; the certificate of parity was given for
    # float32.
    "use_tf32": "0",
    # Memory grows by what is requested; by powers of two it can be twice what is needed.
    "arena_extend_strategy": "kSameAsRequested",
}


def padded_sizes(max_batch_size: int) -> tuple[int, ...]:
    """The batch sizes that run on a GPU: 1, 2, 4, 8, 16 and so on, and the largest itself.

    Each size is a shape: with a search of algorithms, buffers and perhaps a session of its own.
    """
    powers = [1 << bit for bit in range(max_batch_size.bit_length())]
    return tuple(sorted({*powers, max_batch_size}))


def padded_size(images: int, sizes: Sequence[int]) -> int:
    """The smallest of the ascending sizes that holds so many images; without one, their number."""
    return next((size for size in sizes if size >= images), images)


def cuda_providers(
    gpu: int, *, graphs: bool = False, changes: Mapping[str, str] | None = None
) -> Providers:
    """The CUDA provider on one GPU, and the CPU for what it leaves.

    Args:
        gpu: its number, >= 0.
        graphs: records CUDA graphs. ONNX Runtime then refuses a model that does not run on the GPU
            as a whole.
        changes: of `CUDA_OPTIONS`, or further options of the provider.
    """
    cuda = {**CUDA_OPTIONS, **(changes or {}), "enable_cuda_graph": str(int(graphs))}
    return [(CUDA, {"device_id": gpu, **cuda}), (CPU, {})]


def tensorrt_providers(
    gpu: int,
    metadata: Metadata,
    sizes: Sequence[int],
    *,
    cache: Path | None,
) -> Providers:
    """TensorRT on one GPU, and behind it what `cuda_providers` gives.

    Args:
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
    # One engine for all shapes. Without a range it would be built again at each that is new.
    heights, widths = zip(*metadata.buckets, strict=True)
    tensorrt |= {
        "trt_profile_min_shapes": _profile(sizes[0], min(heights), min(widths)),
        "trt_profile_opt_shapes": _profile(sizes[-1], *max(metadata.buckets, key=_pixels)),
        "trt_profile_max_shapes": _profile(sizes[-1], max(heights), max(widths)),
    }
    return [(TENSORRT, tensorrt), *cuda_providers(gpu)]


def _profile(images: int, height: int, width: int) -> str:
    return f"images:{images}x{height}x{width}x3"


def _pixels(hw: tuple[int, int]) -> int:
    return hw[0] * hw[1]
