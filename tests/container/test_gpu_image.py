"""The image for GPUs: its contents, and what it says where there is no GPU."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import elftools
import httpx
import pytest

from benchmarks.container_engine import Container, Engine, ended, ready
from tests.container.test_cpu_container import assert_finds_the_cells, assert_refused

LARGEST_BYTES = 3_000_000_000
PROVIDER = "onnxruntime/capi/libonnxruntime_providers_cuda.so"
CUDNN = "nvidia/cudnn/lib/libcudnn.so.9"
# The driver is the host's: the NVIDIA Container Toolkit puts it into the container.
OF_THE_DRIVER = {"libcuda.so", "libcuda.so.1"}
# Names that are tried one after the other; the others are there.
OTHER_NAMES = {"libcudart.so.12", "libnvrtc.so", "libnvrtc.so.12"}

LISTING = """
import json, pathlib, sys
from importlib.metadata import distributions
site = pathlib.Path(sys.prefix, "lib/python3.11/site-packages")
print(json.dumps({
    "packages": sorted(each.metadata["Name"].lower() for each in distributions()),
    "nvidia": sorted(each.name for each in site.glob("nvidia/*/lib/*")),
    "for compilers": [
        str(each) for each in site.rglob("*")
        if each.suffix in (".a", ".h", ".hpp", ".cuh", ".cu") or each.name in ("nvcc", "ptxas")
    ],
}))
"""


@pytest.fixture(scope="module")
def known(engine: Engine, gpu_image: str) -> dict[str, Any]:
    return engine.inspect_image(gpu_image)


@pytest.fixture(scope="module")
def listed(engine: Engine, gpu_image: str) -> dict[str, list[str]]:
    found = engine.python(gpu_image, LISTING)
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def libraries(engine: Engine, gpu_image: str) -> dict[str, dict[str, Any]]:
    """Every library that the CUDA provider and cuDNN need or open, by name."""
    walker = Path(__file__).with_name("elf_walk.py")
    pyelftools = Path(elftools.__file__).parent
    found = engine.output(
        "run",
        "--rm",
        f"--volume={walker}:/walk/elf_walk.py:ro",
        f"--volume={pyelftools}:/walk/elftools:ro",
        "--env=PYTHONPATH=/walk",
        "--user=0",
        "--entrypoint=python",
        gpu_image,
        "/walk/elf_walk.py",
        PROVIDER,
        CUDNN,
    )
    walked = json.loads(found)
    assert isinstance(walked, dict)
    return walked


@pytest.fixture(scope="module")
def running(engine: Engine, gpu_image: str) -> Iterator[tuple[Container, httpx.Client]]:
    with ready(engine, gpu_image) as both:
        yield both


def test_it_has_at_most_3_gb(known: dict[str, Any]) -> None:
    assert known["Size"] <= LARGEST_BYTES


def test_it_holds_the_cuda_build_and_no_training_library(listed: dict[str, list[str]]) -> None:
    packages = set(listed["packages"])
    assert {"onnxruntime-gpu", "nvidia-ml-py", "yolov8-fla"} <= packages
    unwanted = {"onnxruntime", "torch", "torchvision", "ultralytics", "onnx", "pip", "setuptools"}
    assert packages.isdisjoint(unwanted)


def test_it_holds_nothing_for_compilers(listed: dict[str, list[str]]) -> None:
    assert listed["for compilers"] == []


def test_every_library_that_the_cuda_provider_needs_is_there(
    libraries: dict[str, dict[str, Any]],
) -> None:
    missing = {name: each["by"] for name, each in libraries.items() if each["path"] is None}
    for name in OF_THE_DRIVER | OTHER_NAMES:
        missing.pop(name, None)
    assert missing == {}


def test_the_walk_reached_what_convolutions_run_on(libraries: dict[str, dict[str, Any]]) -> None:
    parts = (
        "graph ops cnn adv heuristic engines_precompiled engines_runtime_compiled engines_tensor_ir"
    )
    expected = {f"libcudnn_{part}.so.9" for part in parts.split()}
    expected |= {"libcublas.so.13", "libcublasLt.so.13", "libcudart.so.13", "libcurand.so.10"}
    expected |= {"libnvrtc.so.13", "libz.so.1", "libcuda.so.1"}
    assert expected <= set(libraries)
    assert libraries["libcuda.so.1"]["path"] is None, "the driver must come from the host"


def test_no_library_of_nvidias_is_there_for_nothing(
    listed: dict[str, list[str]], libraries: dict[str, dict[str, Any]]
) -> None:
    # Those of nvrtc are opened by a name that is put together.
    builtins = {name for name in listed["nvidia"] if name.startswith("libnvrtc-builtins.so.")}
    assert builtins
    there = set(listed["nvidia"]) - builtins - {"__init__.py"}
    assert there <= set(libraries)


def test_it_asks_the_container_toolkit_for_the_gpus(known: dict[str, Any]) -> None:
    environment = dict(each.split("=", 1) for each in known["Config"]["Env"])
    assert environment["NVIDIA_VISIBLE_DEVICES"] == "all"
    assert environment["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"
    assert "(gpu)" in known["Config"]["Labels"]["org.opencontainers.image.description"]


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_without_a_gpu_one_that_is_asked_for_is_refused_with_what_is_missing(
    engine: Engine, gpu_image: str, device: str
) -> None:
    run = ended(engine, gpu_image, f"--env=YOLO_FLA_DEVICE={device}")
    assert_refused(run, "CUDAExecutionProvider was asked for, and no NVIDIA GPU is visible")
    assert_refused(run, "driver R580 .* --gpus all")


def test_tensorrt_which_is_not_there_is_refused(engine: Engine, gpu_image: str) -> None:
    assert_refused(ended(engine, gpu_image, "--env=YOLO_FLA_DEVICE=tensorrt"), "[Tt]ensor[Rr][Tt]")


def test_without_a_gpu_it_serves_on_the_cpu(
    running: tuple[Container, httpx.Client], repo_dir: Path
) -> None:
    assert_finds_the_cells(running[1], repo_dir)


def test_without_a_gpu_it_says_in_health_metrics_and_log_that_it_serves_on_the_cpu(
    running: tuple[Container, httpx.Client],
) -> None:
    container, client = running
    health = client.get("/health").json()
    assert health["provider"] == "CPUExecutionProvider"
    assert re.search("GPU", health["cpu_fallback"])
    assert "\ndetector_cpu_fallback 1.0\n" in client.get("/metrics").text
    assert "CPU" in container.logs()


def test_without_a_gpu_it_logs_nothing_but_json(running: tuple[Container, httpx.Client]) -> None:
    # ONNX Runtime writes coloured lines of its own when it is asked for a GPU in vain.
    lines = running[0].logs().splitlines()
    assert lines
    assert [line for line in lines if not line.startswith("{")] == []


def test_the_doctor_says_that_no_gpu_is_there(engine: Engine, gpu_image: str) -> None:
    run = ended(engine, gpu_image, command=["doctor"])
    assert run.returncode == 0, run.stdout
    assert "no NVIDIA GPU is visible" in run.stdout
