"""Calls over buffers that stay where they are, and CUDA graphs of them.

While a graph is being recorded nobody else may use the GPU; and the GPU reads the buffers by
itself, without the CPU copying them piece by piece.
"""

import ctypes
import logging
import math
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from server.inference.cuda.options import Shape, padded_size
from server.inference.onnx_session import INPUT, OUTPUT
from server.ort import onnxruntime
from server.vision.letterbox import PAD_VALUE

# The CUDA that ONNX Runtime is built for, and has loaded by now.
CUDA_RUNTIME = "libcudart.so.13"

_log = logging.getLogger(__name__)

_NO_GRAPH = "-1"  # as gpu_graph_id: neither records nor replays

Images = NDArray[np.uint8]
Candidates = NDArray[np.float32]


class GraphCapture:
    """Lets calls run side by side, and a recording alone.

    ONNX Runtime records in CUDA's global mode: whatever another thread of the process allocates or
    copies meanwhile fails, and the recording with it. So a model that is warmed up at a reload has
    to keep the one that serves waiting, for the time of a few calls.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = 0
        self._capturing = False

    @contextmanager
    def call(self) -> Iterator[None]:
        """Waits for recordings, those that wait included, and holds others off."""
        with self._changed:
            self._changed.wait_for(lambda: not self._capturing)
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Waits for calls that run, and holds off all others."""
        with self._changed:
            self._changed.wait_for(lambda: not self._capturing)
            self._capturing = True
        try:
            with self._changed:
                self._changed.wait_for(lambda: self._running == 0)
            yield
        finally:
            with self._changed:
                self._capturing = False
                self._changed.notify_all()


# Of the process, as CUDA's rule is.
GRAPH_CAPTURE = GraphCapture()


def pinned_array(shape: tuple[int, ...], library: str = CUDA_RUNTIME) -> NDArray[np.uint8]:
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
        _log.warning("no pinned memory of %d bytes for copies to the GPU: %s", size, status)
        return np.empty(shape, np.uint8)
    memory = (ctypes.c_uint8 * size).from_address(pointer.value)
    # Given back with the last view of it; not at the process' end, when CUDA is gone already.
    weakref.finalize(memory, runtime.cudaFreeHost, pointer).atexit = False
    return np.frombuffer(memoryview(memory).cast("B"), np.uint8).reshape(shape)


class Memory(NamedTuple):
    """Where a session has its input and output, in ONNX Runtime's words."""

    device: str  # "cpu" or "cuda"
    number: int = 0


class Opened(Protocol):
    """A session for one input shape, or for all of them."""

    @property
    def session(self) -> Any:
        """Of ONNX Runtime."""

    @property
    def graphs(self) -> bool:
        """Whether it records CUDA graphs."""


class BoundRunner:
    """Calls over fixed buffers, one after the other on a thread of their own.

    One thread: the buffers are shared; and a CUDA graph belongs to the thread that recorded it, as
    cuDNN's and cuBLAS' handles do: another one would record it again, without a word.

    Args:
        open_shape: gives the session for an input shape, when that comes for the first time.
        candidates: K of the answers for inputs of a (height, width).
        memory: where the sessions work.
        sizes: what batches are padded to, ascending.
    """

    def __init__(
        self,
        open_shape: Callable[[Shape], Opened],
        candidates: Callable[[tuple[int, int]], int],
        memory: Memory,
        sizes: Sequence[int],
    ) -> None:
        self._open_shape = open_shape
        self._candidates = candidates
        self._memory = memory
        self._sizes = sizes
        self._by_shape: dict[Shape, BoundRun] = {}
        self._thread = ThreadPoolExecutor(1, "gpu")

    @property
    def captured(self) -> dict[Shape, bool]:
        """Whether each shape that came is replayed from a CUDA graph."""
        return {shape: run.captured for shape, run in list(self._by_shape.items())}

    def run(self, images: Images) -> Candidates:
        """As a `BatchRunner` does; a shape that is new is prepared first."""
        return self._thread.submit(self._run, images).result()

    def _run(self, images: Images) -> Candidates:
        size = padded_size(len(images), self._sizes)
        shape = (size, *images.shape[1:])
        run = self._by_shape.get(shape)
        if run is None:
            run = self._by_shape[shape] = self._prepare(shape)
        with GRAPH_CAPTURE.call():
            return run(images)

    def _prepare(self, shape: Shape) -> "BoundRun":
        opened = self._open_shape(shape)
        with GRAPH_CAPTURE.call():
            run = BoundRun(opened.session, shape, self._candidates(shape[1:3]), self._memory)
            # Finds algorithms and memory, so that little is left for the recording to wait for.
            run(np.empty((0, *shape[1:]), np.uint8))
        if opened.graphs:
            self._capture(run, shape)
        return run

    def _capture(self, run: "BoundRun", shape: Shape) -> None:
        with GRAPH_CAPTURE.capture():
            try:
                run.capture()
            except Exception as error:  # ONNX Runtime has no common base of its exceptions
                size, height, width, _ = shape
                _log.warning(
                    "no CUDA graph of %d images of %dx%d (height x width), which run without: %s",
                    *(size, height, width, error),
                )


class BoundRun:
    """Calls of one input shape.

    Args:
        session: of ONNX Runtime.
        shape: of its input.
        candidates: K of its answers.
        memory: where it works.

    Attributes:
        captured: calls replay a CUDA graph.
    """

    def __init__(self, session: Any, shape: Shape, candidates: int, memory: Memory) -> None:
        value = onnxruntime().OrtValue.ortvalue_from_shape_and_type
        self._session = session
        self._input = value(shape, np.uint8, *memory)
        self._output = value((shape[0], candidates, 6), np.float32, *memory)
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(INPUT, self._input)
        self._binding.bind_ortvalue_output(OUTPUT, self._output)
        self._batch = pinned_array(shape) if memory.device == "cuda" else np.empty(shape, np.uint8)
        self._batch[:] = PAD_VALUE
        self._used = 0  # images of the call before, which are no grey ones
        self._options = onnxruntime().RunOptions()
        self._options.add_run_config_entry("gpu_graph_id", _NO_GRAPH)
        self.captured = False

    def __call__(self, images: Images) -> Candidates:
        """(B, H, W, 3) uint8 RGB, B up to that of the shape, to (B, K, 6) float32."""
        count = len(images)
        self._batch[:count] = images
        self._batch[count : self._used] = PAD_VALUE
        self._used = count
        self._input.update_inplace(self._batch)
        self._session.run_with_iobinding(self._binding, self._options)
        # A copy also where the output is in the CPU's memory: the next call overwrites it.
        return np.array(self._output.numpy()[:count])

    def capture(self) -> None:
        """Records the CUDA graph that later calls replay; nothing else may use the GPU meanwhile.

        The graph reads anew, each time, what it copied from the CPU's memory when it was recorded:
        where the inputs of some concatenations are. ONNX Runtime has given that memory back to the
        session's pool by then, so nothing but replays may run in the session from now on: hence one
        session for each shape, and no call without the graph.

        Raises:
            Exception: what ONNX Runtime raises; later calls run without a graph then.
        """
        options = onnxruntime().RunOptions()  # the session's only graph has its default number
        self._session.run_with_iobinding(self._binding, options)
        self._options = options
        self.captured = True
