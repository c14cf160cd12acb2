from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from server.doctor.gpu import check_gpu
from server.doctor.gpu_facts import (
    CUDA_LIBRARIES,
    NVML_MISSING,
    TENSORRT_LIBRARIES,
    Build,
    Driver,
    Gpu,
    Library,
    find_libraries,
    read_build,
    read_driver,
)
from server.doctor.report import Check
from server.inference.devices import driver_found

CPU_BUILD = Build({"onnxruntime": "1.31.1"}, ("CPUExecutionProvider",))
GPU_BUILD = Build(
    {"onnxruntime-gpu": "1.31.1"},
    ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
)
L4 = Gpu("NVIDIA L4", (8, 9), 24 * 2**30)
DRIVER = Driver("580.65.06", (L4,))


def present(wanted: dict[str, str] = CUDA_LIBRARIES) -> list[Library]:
    return [Library(name, package, f"/lib/{name}") for name, package in wanted.items()]


def absent(*names: str) -> list[Library]:
    usual = "cannot open shared object file: No such file or directory"
    return [
        Library(each.name, each.package, None, usual) if each.name in names else each
        for each in present(CUDA_LIBRARIES | TENSORRT_LIBRARIES)
    ]


def checks(
    device: str = "cuda",
    *,
    visible: bool = True,
    build: Build = GPU_BUILD,
    driver: Driver = DRIVER,
    libraries: Callable[[], list[Library]] = present,
) -> dict[str, Check]:
    found = check_gpu(device, visible=visible, build=build, driver=driver, libraries=libraries)
    return {check.name: check for check in found}


def marks(found: dict[str, Check]) -> set[str]:
    return {check.mark for check in found.values()}


@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:0"])
def test_a_gpu_with_all_it_needs_is_well(device: str) -> None:
    found = checks(device)
    assert marks(found) == {"ok"}
    assert found["driver"].text == "580.65.06"
    assert found["GPU 0"].text == "NVIDIA L4, 24 GiB, compute capability 8.9"
    assert found["libcudnn.so.9"].text == "/lib/libcudnn.so.9"


def never() -> list[Library]:
    raise AssertionError("libraries were looked for where nothing depends on them")


@pytest.mark.parametrize(("device", "visible"), [("cpu", False), ("cpu", True), ("auto", False)])
def test_a_gpu_that_nobody_asked_for_is_no_matter(device: str, visible: bool) -> None:
    found = checks(device, visible=visible, build=CPU_BUILD, driver=Driver(), libraries=never)
    assert marks(found) == {"info"}
    assert len(found) == 1


@pytest.mark.parametrize(("device", "mark"), [("auto", "warn"), ("cuda", "fail")])
@pytest.mark.parametrize(
    ("name", "given", "fix"),
    [
        ("driver", {"driver": Driver(problem="NVML: Driver Not Loaded")}, "--gpus all"),
        ("driver", {"driver": Driver(problem=NVML_MISSING)}, "EXTRA=gpu"),
        ("driver", {"driver": Driver("570.1", (L4,))}, "nvidia-driver-580"),
        ("GPU 0", {"driver": Driver("580.1", (Gpu("P4", (6, 1), 2**33),))}, "--device cpu"),
        ("build", {"build": CPU_BUILD, "libraries": never}, "make serve EXTRA=gpu"),
        ("build", {"build": CPU_BUILD, "libraries": never}, "pip install 'yolov8-fla[gpu]'"),
        ("CUDA libraries", {"libraries": lambda: absent("libcudnn.so.9")}, "EXTRA=gpu"),
        ("TensorRT", {"libraries": lambda: absent("libnvinfer.so.10")}, "tensorrt-cu13"),
    ],
)
def test_what_is_missing_is_as_bad_as_it_is_needed_and_has_a_fix(
    name: str, given: dict[str, Any], fix: str, device: str, mark: str
) -> None:
    check = checks(device, **given)[name]
    assert check.mark == mark
    assert fix in " ".join(check.fixes)


def test_no_gpu_where_one_was_asked_for_fails_with_both_ways_out() -> None:
    found = checks("cuda", visible=False, driver=Driver())
    assert found["GPU"].mark == "fail"
    assert "driver" in found["GPU"].fixes[0]
    assert "container" in found["GPU"].fixes[1]


def test_missing_libraries_are_named_together_with_their_packages() -> None:
    found = checks(libraries=lambda: absent("libcudnn.so.9", "libcurand.so.10"))
    assert found["CUDA libraries"].text == (
        "missing: libcurand.so.10 (of nvidia-curand), libcudnn.so.9 (of nvidia-cudnn-cu13)"
    )


def test_a_library_that_is_there_and_does_not_load_says_why() -> None:
    broken = Library("libcudart.so.13", "nvidia-cuda-runtime", None, "invalid ELF header")
    found = checks(libraries=lambda: [broken])
    assert "does not load: invalid ELF header" in found["CUDA libraries"].text


def test_tensorrt_needs_a_build_with_it() -> None:
    only_cuda = Build({"onnxruntime-gpu": "1.31.1"}, ("CUDAExecutionProvider",))
    assert checks("tensorrt", build=only_cuda, libraries=never)["build"].mark == "fail"


class NvmlError(Exception):
    """What the stand-in for the driver's library raises."""


class Nvml:
    """Stands in for the module pynvml, with one GPU; `failing` is a function that raises."""

    NVMLError = NvmlError

    def __init__(self, failing: str = "") -> None:
        self._failing = failing

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*_: object) -> Any:
            if name == self._failing:
                raise NvmlError("Unknown Error")
            return {
                "nvmlInit": None,
                "nvmlSystemGetDriverVersion": "580.65.06",
                "nvmlDeviceGetCount": 1,
                "nvmlDeviceGetHandleByIndex": 0,
                "nvmlDeviceGetName": "NVIDIA L4",
                "nvmlDeviceGetCudaComputeCapability": (8, 9),
                "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=24 * 2**30),
            }[name]

        return call


@pytest.mark.parametrize(
    ("failing", "driver"),
    [
        ("", DRIVER),
        ("nvmlInit", Driver(problem="NVML: Unknown Error")),
        ("nvmlDeviceGetHandleByIndex", Driver("580.65.06", problem="NVML: Unknown Error")),
        ("nvmlDeviceGetMemoryInfo", Driver("580.65.06", (Gpu("NVIDIA L4", (8, 9), None),))),
    ],
)
def test_what_nvml_does_not_report_is_named(failing: str, driver: Driver) -> None:
    assert read_driver(Nvml(failing)) == driver


def test_a_lost_gpu_is_reported_beside_the_drivers_version() -> None:
    lost = Driver("580.65.06", problem="NVML: GPU is lost")
    texts = [
        check.text
        for check in check_gpu(
            "cuda", visible=True, build=GPU_BUILD, driver=lost, libraries=present
        )
        if check.name == "driver"
    ]
    assert texts == ["NVML: GPU is lost", "580.65.06"]


def test_a_gpu_without_memory_of_its_own_is_shown_without_its_size() -> None:
    driver = Driver("580.65.06", (Gpu("NVIDIA GB10", (12, 1), None),))
    assert checks(driver=driver)["GPU 0"].text == "NVIDIA GB10, compute capability 12.1"


@pytest.mark.skipif(driver_found(), reason="there is a driver")
def test_a_machine_without_a_driver_has_no_version_and_a_reason() -> None:
    driver = read_driver()
    assert driver.version is None
    assert "NVML" in driver.problem or "nvidia-ml-py" in driver.problem


def test_libraries_are_taken_from_pips_packages_before_the_systems(tmp_path: Path) -> None:
    (tmp_path / "libc.so.6").symlink_to(find_loaded("libc.so.6"))
    (tmp_path / "libbroken.so.1").touch()
    names = ("libc.so.6", "libm.so.6", "libbroken.so.1", "libno-such.so.1")
    found = find_libraries(dict.fromkeys(names, "package"), [tmp_path / "empty", tmp_path])
    assert [library.path for library in found] == [
        str(tmp_path / "libc.so.6"), "libm.so.6", None, None
    ]  # fmt: skip
    assert found[2].problem.startswith(str(tmp_path / "libbroken.so.1"))
    assert "libno-such.so.1" in found[3].problem


def find_loaded(name: str) -> str:
    maps = Path("/proc/self/maps").read_text().splitlines()
    return next(line.split()[-1] for line in maps if line.endswith(f"/{name}"))


def test_the_build_of_this_environment_is_read() -> None:
    build = read_build()
    assert build.problem == ""
    assert "CPUExecutionProvider" in build.providers
    assert len(build.packages) == 1
