"""How a GPU session runs: what may be chosen, and what the providers are told of it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class CudaOptions:
    """What a session on the CUDA provider may do in more than one way.

    The defaults are the careful ones: nothing here has been measured on a GPU yet. `plain` calls
    are what every user of ONNX Runtime makes; the others are to be measured against them.

    Attributes:
        calls: "plain": ONNX Runtime copies each batch and allocates its answer. "bound": fixed
            buffers on the GPU for each input shape, filled from page-locked memory. "captured":
            bound, and each shape's kernels recorded once as a CUDA graph and launched as one.
        conv_search: how cuDNN chooses a convolution's algorithm at each new shape: "HEURISTIC"
            asks it (31 ms over 16 shapes), "EXHAUSTIVE" tries all (10 s: PaddleX#5057), "DEFAULT"
            takes the first (slow: onnxruntime#22705).
        conv_max_workspace: the search may take any amount of scratch memory.
        fuse_conv_bias: a convolution's bias and activation in one kernel, built at run time.
        prefer_nhwc: convolutions with channels last, which float16 tensor cores compute in.
        tf32: float32 products in TensorFloat-32, faster and with 10 bits of mantissa. The
            certificate of parity was given for float32.
        arena: how the memory pool grows: by what was asked for, or by powers of two, which can
            hold twice what the largest batch needs.
        memory_limit_bytes: of the memory pool of each session; None sets none.
        lanes: sessions side by side, each with streams, buffers and weights of its own, so that
            one copies while another computes; >= 1.
    """

    calls: Literal["plain", "bound", "captured"] = "plain"
    conv_search: Literal["HEURISTIC", "EXHAUSTIVE", "DEFAULT"] = "HEURISTIC"
    conv_max_workspace: bool = True
    fuse_conv_bias: bool = False
    prefer_nhwc: bool = False
    tf32: bool = False
    arena: Literal["kSameAsRequested", "kNextPowerOfTwo"] = "kSameAsRequested"
    memory_limit_bytes: int | None = None
    lanes: int = 1
