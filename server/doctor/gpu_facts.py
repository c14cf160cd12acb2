"""What there is of an NVIDIA GPU: its driver, its libraries, and ONNX Runtime's build for it."""

import ctypes
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
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
TENSORRT_LIBRARIES = dict.fromkeys(LIBRARIES, "tensorrt-cu13<11")

_SMI = (
    "nvidia-smi",
    "--query-gpu=driver_version,name,compute_cap,memory.total",
    "--format=csv,noheader,nounits",
)


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU.

    Attributes:
        name: such as "NVIDIA L4".
        compute_capability: (major, minor).
        memory_bytes: in all.
    """

    name: str
    compute_capability: tuple[int, int]
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Driver:
    """NVIDIA's driver, as far as this process can see it.

    Attributes:
        version: such as "580.65.06"; None without a driver.
        gpus: those that it shows; none where only its version could be read.
        source: who told.
    """

    version: str | None
    gpus: tuple[Gpu, ...] = ()
    source: str = ""


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


def read_driver(
    nvml: Any | None,
    *,
    smi: Callable[[], str] | None = None,
    proc: Path = Path("/proc/driver/nvidia/version"),
) -> Driver:
    """Asks the driver's library, else `nvidia-smi`, else the kernel.

    Args:
        nvml: as `server.observability.gpu_metrics.open_nvml` gives it.
        smi: gives what `nvidia-smi` prints, "" where it can't; by default that program.
        proc: where the kernel's module tells its version.
    """
    if nvml is not None:
        with suppress(nvml.NVMLError):
            handles = [
                nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())
            ]
            gpus = tuple(_gpu_of(nvml, handle) for handle in handles)
            return Driver(nvml.nvmlSystemGetDriverVersion(), gpus, "NVML")
    rows = [line.split(", ") for line in (smi or _nvidia_smi)().splitlines()]
    gpu_rows = [row for row in rows if len(row) == 4 and re.fullmatch(r"\d+\.\d+", row[2])]
    if gpu_rows:
        gpus = tuple(Gpu(name, _pair(cc), _mib(memory)) for _, name, cc, memory in gpu_rows)
        return Driver(gpu_rows[0][0], gpus, "nvidia-smi")
    try:
        found = re.search(r"\s(\d{3,}\.\d+(\.\d+)?)\s", proc.read_text(errors="replace"))
    except OSError:
        found = None
    return Driver(found[1], source=str(proc)) if found else Driver(None)


def find_libraries(
    packages_by_file: dict[str, str],
    *,
    folders: Iterable[Path] | None = None,
    load: Callable[[str], object] = ctypes.CDLL,
) -> list[Library]:
    """Loads libraries, as ONNX Runtime would find them: from pip's packages, else the system's.

    Args:
        packages_by_file: the package by the file name of each.
        folders: where to look first; by default those of NVIDIA's packages on `sys.path`.
        load: loads one by path or name, or raises OSError.
    """
    places = list(_package_folders(sys.path) if folders is None else folders)
    return [_find(name, package, places, load) for name, package in packages_by_file.items()]


def _find(
    name: str, package: str, folders: Sequence[Path], load: Callable[[str], object]
) -> Library:
    paths = [str(folder / name) for folder in folders if (folder / name).is_file()]
    problem = ""
    for path in (*paths, name):
        try:
            load(path)
        except OSError as error:
            problem = problem or str(error)
        else:
            return Library(name, package, path)
    return Library(name, package, None, problem)


def _package_folders(import_path: Iterable[str]) -> list[Path]:
    roots = [Path(each) for each in import_path if each]
    found = [folder for root in roots for folder in sorted(root.glob("nvidia/*/lib"))]
    return found + [root / "tensorrt_libs" for root in roots if (root / "tensorrt_libs").is_dir()]


def _gpu_of(nvml: Any, handle: Any) -> Gpu:
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    total = nvml.nvmlDeviceGetMemoryInfo(handle).total
    return Gpu(nvml.nvmlDeviceGetName(handle), (major, minor), total)


def _nvidia_smi() -> str:
    try:
        done = subprocess.run(_SMI, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _pair(version: str) -> tuple[int, int]:
    major, _, minor = version.partition(".")
    return int(major), int(minor)


def _mib(text: str) -> int:
    return int(text) * 2**20 if text.isdecimal() else 0
