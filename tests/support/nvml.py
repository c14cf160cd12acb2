"""Stands in for NVIDIA's driver, through the seam that `GpuCollector` has for it."""

from types import SimpleNamespace
from typing import Any


class DriverError(Exception):
    """What a stand-in for the driver raises."""


class Driver:
    """Stands in for the module pynvml: two GPUs, and whatever `broken` names fails.

    Its own functions have the names and the signatures of the module's, as a test checks.
    """

    NVMLError = DriverError
    NVML_TEMPERATURE_GPU = 0

    def __init__(self, *broken: tuple[str, int]) -> None:
        self.broken = set(broken)

    def _ask(self, name: str, handle: int, value: Any) -> Any:
        if (name, handle) in self.broken:
            raise DriverError(name)
        return value

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802  # NVML's own spelling, as below
        count: int = self._ask("count", 0, 2)
        return count

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        handle: int = self._ask("handle", index, index)
        return handle

    def nvmlDeviceGetUUID(self, handle: int) -> str:  # noqa: N802
        return f"GPU-{handle}{handle}"

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:  # noqa: N802
        return self._ask("utilization", handle, SimpleNamespace(gpu=37 + handle, memory=2))

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:  # noqa: N802
        return self._ask("memory", handle, SimpleNamespace(used=2**30, total=2**34, free=0))

    def nvmlDeviceGetTemperatureV(self, handle: int, sensor: int) -> int:  # noqa: N802
        celsius: int = self._ask("temperature", handle, 60 + sensor)
        return celsius
