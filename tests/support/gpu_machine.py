"""Whether this machine can run tests/gpu, and how much of its GPU's memory is used."""

from collections.abc import Callable

import onnxruntime

from server.host import resident_bytes
from server.inference.devices import driver_found, gpu_visible
from server.observability.gpu_metrics import open_nvml

Reading = Callable[[], int]


def missing_gpu(
    *,
    visible: Callable[[], bool] = gpu_visible,
    driver: Callable[[], bool] = driver_found,
    providers: Callable[[], list[str]] = onnxruntime.get_available_providers,
) -> str | None:
    """Why no test can run on a GPU here; None if it should be possible.

    A GPU whose CUDA does not work is no reason: the tests say so by failing.
    """
    if not visible() and not driver():
        return "no NVIDIA GPU is visible here"
    if "CUDAExecutionProvider" not in providers():
        return "this onnxruntime is built without CUDA: make test-gpu EXTRA=gpu"
    return None


def reading(device: str) -> Reading:
    """Reads the bytes of memory that are used: of a whole GPU, or of this process on a CPU."""
    if device == "cpu":
        return resident_bytes
    nvml = open_nvml()
    assert nvml is not None, "NVIDIA's driver does not answer, or nvidia-ml-py is missing"
    handle = nvml.nvmlDeviceGetHandleByIndex(int(device.partition(":")[2] or 0))
    return lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).used)
