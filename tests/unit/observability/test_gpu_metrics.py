from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from server.observability.gpu_metrics import open_nvml, register_gpu_metrics
from tests.support.nvml import Driver


def scrape(nvml: Any | None) -> dict[str, float]:
    """Value by name and labels."""
    registry = CollectorRegistry()
    register_gpu_metrics(registry, nvml)
    lines = generate_latest(registry).decode().splitlines()
    samples = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in samples}


def test_each_gpu_tells_its_use_memory_and_temperature() -> None:
    samples = scrape(Driver())
    for gpu, ratio in ((0, 0.37), (1, 0.38)):
        labels = f'{{gpu="{gpu}",uuid="GPU-{gpu}{gpu}"}}'
        assert samples[f"detector_gpu_utilization_ratio{labels}"] == ratio
        assert samples[f"detector_gpu_memory_used_bytes{labels}"] == 2**30
        assert samples[f"detector_gpu_memory_total_bytes{labels}"] == 2**34
        assert samples[f"detector_gpu_temperature_celsius{labels}"] == 60
    assert len(samples) == 8


def test_what_the_driver_cannot_say_is_left_out() -> None:
    samples = scrape(Driver(("utilization", 0), ("temperature", 0), ("temperature", 1)))
    assert len(samples) == 5
    assert 'detector_gpu_memory_used_bytes{gpu="0",uuid="GPU-00"}' in samples
    assert 'detector_gpu_utilization_ratio{gpu="1",uuid="GPU-11"}' in samples
    assert not any("temperature" in name for name in samples)


@pytest.mark.parametrize("broken", [[("count", 0)], [("handle", 0), ("handle", 1)]])
def test_a_driver_that_fails_gives_no_metrics_and_no_error(broken: list[tuple[str, int]]) -> None:
    assert scrape(Driver(*broken)) == {}


def test_a_gpu_that_fell_off_leaves_the_other() -> None:
    assert {name.split("{")[1] for name in scrape(Driver(("handle", 0)))} == {
        'gpu="1",uuid="GPU-11"}'
    }


def test_without_a_driver_there_are_no_metrics() -> None:
    assert scrape(None) == {}


def test_the_stand_in_has_what_the_real_module_has() -> None:
    real = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    names = [name for name in vars(Driver) if name.startswith(("nvml", "NVML"))]
    assert len(names) == 8
    assert all(hasattr(real, name) for name in names)


@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="there is an NVIDIA driver here")
def test_no_driver_is_no_error() -> None:
    assert open_nvml() is None
