"""What the figures were measured on, and the proof that it was that."""

import ctypes
import os
import platform
import re
import subprocess
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from benchmarks.gpu.bench import Bench, Figures
from server.host import available_cpus, cpu_name
from server.inference.devices import CUDA
from server.observability.gpu_metrics import open_nvml
from server.ort import onnxruntime

QUERY = {
    "name": "name",
    "driver": "driver_version",
    "sm_mhz": "clocks.sm",
    "memory_mhz": "clocks.mem",
    "celsius": "temperature.gpu",
    "watts": "power.draw",
    "used_bytes": "memory.used",
    "total_bytes": "memory.total",
}
MIB = 2**20


class NotOnGpu(Exception):
    """A GPU was asked for, and that models run on one could not be shown."""


def measure(bench: Bench) -> Generator[Figures]:
    """Names and versions that stay the same between calls, once a session was seen on the device.

    Raises:
        NotOnGpu: a GPU was asked for and what runs is not on one.
        ProviderUnavailable: as `Session.open` does.
    """
    before = reading(bench.job.device)
    artifact = bench.square(bench.served)
    with bench.session(artifact, 1) as session:
        session.run(bench.canvases(artifact, 1))
        proof = {
            "provider": session.provider,
            "device": session.device,
            "nodes": session.nodes_by_provider,
        }
        during = reading(bench.job.device)
    if bench.on_gpu:
        refuse_unless_proven(proof, before, during)
    yield machine(bench.on_gpu, during) | {"proof": proof}


def refuse_unless_proven(
    proof: Mapping[str, Any], before: Mapping[str, Any], during: Mapping[str, Any]
) -> None:
    """Raises NotOnGpu unless the session, its nodes and the driver all say that a GPU is used.

    Args:
        proof: what the session says.
        before: `reading` before the session was opened.
        during: the same while it is open.
    """
    if proof["provider"] != CUDA:
        raise NotOnGpu(f"the session runs on {proof['provider']}")
    on_gpu = proof["nodes"].get(CUDA, 0)
    if on_gpu <= sum(proof["nodes"].values()) / 2:
        raise NotOnGpu(f"most nodes are not on the GPU: {proof['nodes']}")
    if not during.get("name"):
        raise NotOnGpu("neither NVML nor nvidia-smi names a GPU")
    if during["used_bytes"] <= before["used_bytes"]:
        raise NotOnGpu("an open session uses no GPU memory")


def machine(on_gpu: bool, gpu: Mapping[str, Any]) -> dict[str, Any]:
    """Names and versions; those of the GPU only where it is used."""
    facts: dict[str, Any] = {
        "cpu": cpu_name(),
        "cpus": available_cpus(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "onnxruntime": onnxruntime().__version__,
        "build": onnxruntime().get_build_info(),
        "packages": {name: installed(name) for name in ("numpy", "opencv-python-headless")},
    }
    if on_gpu:
        facts |= {
            "gpu": gpu.get("name"),
            "gpu_memory_bytes": gpu.get("total_bytes"),
            "driver": gpu.get("driver"),
            "cuda": library_version(
                ("libcudart.so.13", "libcudart.so.12"), "cudaRuntimeGetVersion"
            ),
            "cudnn": cudnn_version(),
        }
    return facts


def installed(name: str) -> str | None:
    """The version of a package, if it is there."""
    with suppress(PackageNotFoundError):
        return version(name)
    return None


def library_version(
    names: tuple[str, ...], function: str, load: Callable[[str], Any] = ctypes.CDLL
) -> int | None:
    """What a library that ONNX Runtime has loaded says of itself, such as 13000."""
    for name in names:
        with suppress(OSError, AttributeError):
            number = ctypes.c_int()
            getattr(load(name), function)(ctypes.byref(number))
            return number.value
    return None


def cudnn_version(load: Callable[[str], Any] = ctypes.CDLL) -> int | None:
    """Such as 91300; None where there is no cuDNN 9."""
    with suppress(OSError, AttributeError):
        function = load("libcudnn.so.9").cudnnGetVersion
        function.restype = ctypes.c_size_t
        return int(function())
    return None


def reading(device: str) -> dict[str, Any]:
    """What the GPU is and does now: clocks, heat, power, memory in use. Empty for a CPU."""
    if device == "cpu":
        return {}
    index = int(device.partition(":")[2] or 0)
    nvml = open_nvml()
    if nvml is not None:
        return read_nvml(nvml, visible_index(index, os.environ.get("CUDA_VISIBLE_DEVICES")))
    command = ["nvidia-smi", f"--query-gpu={','.join(QUERY.values())}"]
    command += ["--format=csv,noheader,nounits", f"--id={index}"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    return parse_smi(said.stdout)


def visible_index(index: int, visible: str | None) -> int:
    """The driver's number of the GPU that CUDA gives this number."""
    chosen = [each.strip() for each in (visible or "").split(",")]
    if index < len(chosen) and chosen[index].isdecimal():
        return int(chosen[index])
    return index


def read_nvml(nvml: Any, index: int) -> dict[str, Any]:
    """`reading` from NVML; what the driver can't say is left out."""
    found: dict[str, Any] = {}
    try:
        gpu = nvml.nvmlDeviceGetHandleByIndex(index)
    except nvml.NVMLError:
        return found
    readings: dict[str, Callable[[], Any]] = {
        "name": lambda: _text(nvml.nvmlDeviceGetName(gpu)),
        "driver": lambda: _text(nvml.nvmlSystemGetDriverVersion()),
        "sm_mhz": lambda: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM),
        "memory_mhz": lambda: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM),
        "celsius": lambda: nvml.nvmlDeviceGetTemperatureV(gpu, nvml.NVML_TEMPERATURE_GPU),
        "watts": lambda: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
        "used_bytes": lambda: nvml.nvmlDeviceGetMemoryInfo(gpu).used,
        "total_bytes": lambda: nvml.nvmlDeviceGetMemoryInfo(gpu).total,
        "throttled": lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(gpu),
    }
    for name, read in readings.items():
        with suppress(nvml.NVMLError, AttributeError):
            found[name] = read()
    return found


def parse_smi(text: str) -> dict[str, Any]:
    """`reading` from a line of nvidia-smi; what it says is not available is left out."""
    values = [each.strip() for each in text.strip().splitlines()[0].split(",")] if text else []
    found: dict[str, Any] = {}
    for name, value in zip(QUERY, values, strict=False):
        if name in ("name", "driver"):
            found[name] = value
        elif re.fullmatch(r"[0-9.]+", value):
            number = float(value)
            found[name] = int(number * MIB) if name.endswith("_bytes") else number
    return found


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
