"""GPU use and memory, read from the driver (NVML) when Prometheus asks.

Every GPU that the driver shows this process is there, by the number that `nvidia-smi` gives it: in
a container those that the container was given. Without a driver, or without the package
nvidia-ml-py, which the extra `gpu` brings, there are no such metrics.
"""

import importlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

FAMILIES = {
    "detector_gpu_utilization_ratio": "Share of the last moment in which the GPU computed, 0 to 1.",
    "detector_gpu_memory_used_bytes": "GPU memory in use, by all processes.",
    "detector_gpu_memory_total_bytes": "GPU memory there is.",
    "detector_gpu_temperature_celsius": "Temperature of the GPU.",
}
LABELS = ("gpu", "uuid")


def open_nvml() -> Any | None:
    """The module `pynvml`, connected to the driver; None where there is no driver or package."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    return nvml


def register_gpu_metrics(registry: CollectorRegistry, nvml: Any | None) -> None:
    """Adds the GPU's metrics to a registry; nothing where `nvml` is None."""
    if nvml is not None:
        registry.register(GpuCollector(nvml))


class GpuCollector(Collector):
    """Asks the driver at each scrape. What it can't say is left out, and no scrape fails.

    Args:
        nvml: as `open_nvml` gives it.
    """

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The metrics that have a value now."""
        nvml = self._nvml
        families = {
            name: GaugeMetricFamily(name, text, labels=LABELS) for name, text in FAMILIES.items()
        }
        count = 0
        with suppress(nvml.NVMLError):
            count = nvml.nvmlDeviceGetCount()
        for index in range(count):
            with suppress(nvml.NVMLError):
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                labels = [str(index), nvml.nvmlDeviceGetUUID(handle)]
                for name, read in _readings(nvml, handle).items():
                    # One by one: a slice of a GPU (MIG) has no utilization, but has memory.
                    with suppress(nvml.NVMLError):
                        families[name].add_metric(labels, read())
        yield from (family for family in families.values() if family.samples)


def _readings(nvml: Any, handle: Any) -> dict[str, Callable[[], float]]:
    return {
        "detector_gpu_utilization_ratio": lambda: (
            nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
        ),
        "detector_gpu_memory_used_bytes": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used,
        "detector_gpu_memory_total_bytes": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).total,
        "detector_gpu_temperature_celsius": lambda: nvml.nvmlDeviceGetTemperatureV(
            handle, nvml.NVML_TEMPERATURE_GPU
        ),
    }
