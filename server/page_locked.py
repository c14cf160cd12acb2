"""Memory that the GPU reads by itself, without the CPU copying it piece by piece."""

import ctypes
import logging
import math
import weakref

import numpy as np
from numpy.typing import NDArray

# The CUDA that ONNX Runtime is built for, and has loaded by now.
CUDA_RUNTIME = "libcudart.so.13"

_log = logging.getLogger(__name__)


def page_locked(shape: tuple[int, ...], library: str = CUDA_RUNTIME) -> NDArray[np.uint8]:
    """An array that the system never moves or swaps out; ONNX Runtime's Python API has none.

    Args:
        shape: of the array.
        library: CUDA's runtime.

    Returns:
        uint8, not set. Where CUDA gives no such memory, which is logged, an ordinary array: copies
        from there are slower, and right as well.
    """
    size = math.prod(shape)
    pointer = ctypes.c_void_p()
    status: object
    try:
        runtime = ctypes.CDLL(library)
        status = runtime.cudaHostAlloc(ctypes.byref(pointer), ctypes.c_size_t(size), 0)
    except (OSError, AttributeError) as error:
        status = error
    if status != 0 or pointer.value is None:
        _log.warning("no page-locked memory of %d bytes for copies to the GPU: %s", size, status)
        return np.empty(shape, np.uint8)
    memory = (ctypes.c_uint8 * size).from_address(pointer.value)
    # Given back with the last view of it; not at the process' end, when CUDA is gone already.
    weakref.finalize(memory, runtime.cudaFreeHost, pointer).atexit = False
    return np.frombuffer(memoryview(memory).cast("B"), np.uint8).reshape(shape)
