"""Where a model may run: the devices of a setting, and whether there is a GPU for them."""

import ctypes
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from server.errors import ProviderUnavailable, SettingsInvalid
from server.ort import onnxruntime

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
# The two builds of ONNX Runtime share their files: neither may be there when one is put in.
GPU_BY_MAKE = "make serve EXTRA=gpu"
GPU_BY_PIP = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'yolov8-fla[gpu]'"
INSTALL_GPU = (
    f"in a checkout `{GPU_BY_MAKE}`, as a container the image for GPUs (without EXTRA=cpu), "
    f"elsewhere `{GPU_BY_PIP}`"
)

Opened = TypeVar("Opened")

_log = logging.getLogger(__name__)


def devices_to_try(device: str) -> tuple[str, ...]:
    """The devices that a setting stands for, best first, each one that `Session.open` takes.

    Args:
        device: "cpu", "cuda", "cuda:N", "tensorrt", or "auto": CUDA where it works, else the CPU.

    Raises:
        SettingsInvalid: there is no such device name.
    """
    if device == "auto":
        return ("cuda:0", "cpu")
    if re.fullmatch(r"cpu|tensorrt|cuda(:[0-9]+)?", device) is None:
        raise SettingsInvalid(
            f"device is {device!r}, it must be auto, cpu, cuda, cuda:N or tensorrt"
        )
    return ("cuda:0" if device == "cuda" else device,)


def open_on_first(
    device: str, open_on: Callable[[str], Opened], *, visible: Callable[[], bool] | None = None
) -> tuple[Opened, str | None]:
    """Opens something on the first device that works of those that a setting stands for.

    Args:
        device: as `devices_to_try` takes it.
        open_on: opens on exactly that device.
        visible: whether there is a GPU; `gpu_visible` by default.

    Returns:
        What was opened; and in words, if it is on the CPU though a GPU was to be expected, why.
        That is a logged warning, too.

    Raises:
        ProviderUnavailable: none of them works.
        SettingsInvalid: there is no such device name.
    """
    *before, last = devices_to_try(device)
    for each in before:
        try:
            return open_on(each), None
        except ProviderUnavailable as error:
            problem = str(error)
    opened = open_on(last)
    if not before:
        return opened, None
    built = CUDA in onnxruntime().get_available_providers()
    reason = cpu_fallback(problem, built=built, visible=(visible or gpu_visible)())
    if reason:
        _log.warning("the model runs on the CPU, and NOT on a GPU: %s", reason)
    else:
        _log.info("no GPU is visible, the model runs on the CPU")
    return opened, reason


def cpu_fallback(problem: str, *, built: bool, visible: bool) -> str | None:
    """Why a model runs on the CPU where a GPU was to be expected; None where it was not.

    Args:
        problem: what opening it on the GPU said.
        built: this ONNX Runtime is a build for GPUs.
        visible: the system shows a GPU.
    """
    if visible and built:
        return problem
    if visible:
        return f"a GPU is visible, but this is the CPU build of ONNX Runtime: {INSTALL_GPU}"
    if built:
        return (
            "no NVIDIA GPU is visible to this process, and this ONNX Runtime is a build for them; "
            "a container has to be started with --gpus all"
        )
    return None


def gpu_visible(devices: Path = Path("/dev")) -> bool:
    """Whether the system shows this process an NVIDIA GPU, usable or not."""
    # The second is a GPU under WSL.
    return any(devices.glob("nvidia[0-9]*")) or (devices / "dxg").exists()


def driver_found(library: str = "libcuda.so.1") -> bool:
    """Whether NVIDIA's driver can be loaded, which nothing runs on a GPU without."""
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
