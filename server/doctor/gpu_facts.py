"""What there is of an NVIDIA GPU: its driver, its libraries, and ONNX Runtime's build for it."""

import ctypes
import importlib
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from server.inference.cuda.tensorrt import LIBRARIES
from server.ort import onnxruntime

# What CUDAExecutionProvider of onnxruntime-gpu 1.31 needs, in the order of loading, and who brings
# it. Not cuFFT, which is only for operators that no detector has (onnxruntime#29808).
CUDA_LIBRARIES = {
    "libcublasLt.so.13": "nvidia-cublas",
    "libcublas.so.13": "nvidia-cublas",
    "libnvrtc.so.13": "nvidia-cuda-nvrtc",
    "libcurand.so.10": "nvidia-curand",
    "libcudart.so.13": "nvidia-cuda-runtime",
    "libcudnn.so.9": "nvidia-cudnn-cu13",
}
NVML_MISSING = "not known: nvidia-ml-py, which reads it, is not installed"
TENSORRT_LIBRARIES = dict.fromkeys(LIBRARIES, "tensorrt-cu13<11")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU.

    Attributes:
        name: such as "NVIDIA L4".
        compute_capability: (major, minor).
        memory_bytes: in all; None where the GPU has no memory of its own to report.
    """

    name: str
    compute_capability: tuple[int, int]
    memory_bytes: int | None


@dataclass(frozen=True, slots=True)
class Driver:
    """NVIDIA's driver, as NVML reports it.

    Attributes:
        version: such as "580.65.06"; None where NVML does not work.
        gpus: those that it shows.
        problem: why a version or a GPU could not be read; "" where all could.
    """

    version: str | None = None
    gpus: tuple[Gpu, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Library:
    """A shared library.

    Attributes:
        name: of the file.
        package: who brings it, for pip.
        path: where it was loaded from, or its name where the system found it; None if nowhere.
        problem: why it could not be loaded; "" where it could.
    """

    name: str
    package: str
    path: str | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Build:
    """ONNX Runtime as it is installed.

    Attributes:
        packages: version by name of its packages; more than one break each other.
        providers: those that it was built with, which need not work.
        problem: why it can't be imported; "" where it can.
    """

    packages: dict[str, str]
    providers: tuple[str, ...] = ()
    problem: str = ""


def read_build() -> Build:
    """Looks at the installed packages, and imports the library."""
    packages = {}
    for name in ("onnxruntime", "onnxruntime-gpu"):
        with suppress(metadata.PackageNotFoundError):
            packages[name] = metadata.version(name)
    try:
        return Build(packages, tuple(onnxruntime().get_available_providers()))
    except Exception as error:  # half an installation fails in any way
        return Build(packages, problem=f"{type(error).__name__}: {error}")


def read_driver(nvml: Any | None = None) -> Driver:
    """Reads the driver's version and its GPUs by NVML.

    Args:
        nvml: has the functions of `pynvml`, which is the default.
    """
    try:
        nvml = nvml or importlib.import_module("pynvml")
    except ImportError:
        return Driver(problem=NVML_MISSING)
    version: str | None = None
    gpus: list[Gpu] = []
    try:
        nvml.nvmlInit()
        version = nvml.nvmlSystemGetDriverVersion()
        indices = range(nvml.nvmlDeviceGetCount())
        # Those before one that fails stay in the list.
        gpus.extend(_gpu_of(nvml, nvml.nvmlDeviceGetHandleByIndex(index)) for index in indices)
    except nvml.NVMLError as error:
        return Driver(version, tuple(gpus), f"NVML: {error}")
    return Driver(version, tuple(gpus))


def find_libraries(
    packages_by_file: dict[str, str], folders: Sequence[Path] | None = None
) -> list[Library]:
    """Loads libraries, as ONNX Runtime would find them: from pip's packages, else the system's.

    Args:
        packages_by_file: the package by the file name of each.
        folders: where to look first; by default those of NVIDIA's packages on `sys.path`.
    """
    places = _package_folders() if folders is None else folders
    return [_find(name, package, places) for name, package in packages_by_file.items()]


def _find(name: str, package: str, folders: Sequence[Path]) -> Library:
    paths = [str(folder / name) for folder in folders if (folder / name).is_file()]
    problem = ""
    for path in (*paths, name):
        try:
            ctypes.CDLL(path)
        except OSError as error:
            problem = problem or str(error)
        else:
            return Library(name, package, path)
    return Library(name, package, None, problem)


def _package_folders() -> list[Path]:
    roots = [Path(entry) for entry in sys.path if entry]
    found = [folder for root in roots for folder in sorted(root.glob("nvidia/*/lib"))]
    return found + [root / "tensorrt_libs" for root in roots if (root / "tensorrt_libs").is_dir()]


def _gpu_of(nvml: Any, handle: Any) -> Gpu:
    memory_bytes = None
    with suppress(nvml.NVMLError):  # as of a GB10, which shares the CPU's
        memory_bytes = nvml.nvmlDeviceGetMemoryInfo(handle).total
    capability = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    return Gpu(nvml.nvmlDeviceGetName(handle), capability, memory_bytes)
