from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from server.doctor.gpu import check_gpu
from server.doctor.gpu_facts import (
    CUDA_LIBRARIES,
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

CPU_BUILD = Build({"onnxruntime": "1.31.1"}, ("CPUExecutionProvider",))
GPU_BUILD = Build(
    {"onnxruntime-gpu": "1.31.1"},
    ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
)
L4 = Gpu("NVIDIA L4", (8, 9), 24 * 2**30)
DRIVER = Driver("580.65.06", (L4,), "NVML")


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
    assert found["driver"].text == "580.65.06 (from NVML)"
    assert found["GPU 0"].text == "NVIDIA L4, 24 GiB, compute capability 8.9"
    assert found["libcudnn.so.9"].text == "/lib/libcudnn.so.9"


def never() -> list[Library]:
    raise AssertionError("libraries were looked for where nothing depends on them")


@pytest.mark.parametrize(("device", "visible"), [("cpu", False), ("cpu", True), ("auto", False)])
def test_a_gpu_that_nobody_asked_for_is_no_matter(device: str, visible: bool) -> None:
    found = checks(device, visible=visible, build=CPU_BUILD, driver=Driver(None), libraries=never)
    assert marks(found) == {"info"}
    assert len(found) == 1


@pytest.mark.parametrize(("device", "mark"), [("auto", "warn"), ("cuda", "fail")])
@pytest.mark.parametrize(
    ("name", "given", "fix"),
    [
        ("driver", {"driver": Driver(None)}, "--gpus all"),
        ("driver", {"driver": Driver("570.1", (L4,), "NVML")}, "nvidia-driver-580"),
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
    found = checks("cuda", visible=False, driver=Driver(None))
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
    """Stands in for the module pynvml, with one GPU."""

    NVMLError = NvmlError

    def __init__(self, *, lost: bool = False) -> None:
        self._lost = lost

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802  # NVML's own spelling, as below
        if self._lost:
            raise NvmlError
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetName(self, handle: int) -> str:  # noqa: N802
        return "NVIDIA L4"

    def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> tuple[int, int]:  # noqa: N802
        return (8, 9)

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:  # noqa: N802
        return SimpleNamespace(total=24 * 2**30)

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "580.65.06"


SMI = "580.65.06, NVIDIA L4, 8.9, 24576\n580.65.06, NVIDIA GB10, 12.1, [N/A]\n"
PROC = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n"


def silent() -> str:
    return ""


def test_the_drivers_library_is_asked_first() -> None:
    assert read_driver(Nvml(), smi=never_asked) == DRIVER


def never_asked() -> str:
    raise AssertionError("nvidia-smi was run though the library had answered")


@pytest.mark.parametrize("nvml", [None, Nvml(lost=True)])
def test_without_the_library_nvidia_smi_is_asked(nvml: Any) -> None:
    gpus = (L4, Gpu("NVIDIA GB10", (12, 1), 0))
    assert read_driver(nvml, smi=lambda: SMI) == Driver("580.65.06", gpus, "nvidia-smi")


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (PROC, "580.65.06"),
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183  Sun May\n", "535.183"),
        ("something else\n", None),
    ],
)
def test_without_either_the_kernel_tells_the_version(
    tmp_path: Path, text: str, version: str | None
) -> None:
    (tmp_path / "version").write_text(text)
    driver = read_driver(None, smi=silent, proc=tmp_path / "version")
    assert (driver.version, driver.gpus) == (version, ())


def test_without_a_driver_there_is_none(tmp_path: Path) -> None:
    told = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n"
    assert read_driver(None, smi=lambda: told, proc=tmp_path / "none") == Driver(None)


def test_libraries_are_taken_from_pips_packages_before_the_systems(tmp_path: Path) -> None:
    (tmp_path / "liba.so.1").touch()
    (tmp_path / "libbroken.so.1").touch()
    loaded = []

    def load(name: str) -> None:
        loaded.append(name)
        if "broken" in name or name == "libmissing.so.1":
            raise OSError(f"{name}: no")

    wanted = {f"lib{name}.so.1": "package" for name in ("a", "b", "broken", "missing")}
    found = find_libraries(wanted, folders=[tmp_path / "empty", tmp_path], load=load)
    assert [library.path for library in found] == [
        str(tmp_path / "liba.so.1"),
        "libb.so.1",
        None,
        None,
    ]
    assert found[2].problem == f"{tmp_path / 'libbroken.so.1'}: no"
    assert "liba.so.1" not in loaded


def test_a_library_of_this_system_is_found_and_another_is_not() -> None:
    found = find_libraries({"libc.so.6": "libc6", "libno-such.so.1": "nobody"}, folders=[])
    assert found[0].path == "libc.so.6"
    assert found[1].path is None
    assert "libno-such.so.1" in found[1].problem


def test_the_build_of_this_environment_is_read() -> None:
    build = read_build()
    assert build.problem == ""
    assert "CPUExecutionProvider" in build.providers
    assert len(build.packages) == 1
