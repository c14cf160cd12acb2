"""The GPU: driver, build and libraries. What is missing is as bad as it is needed."""

from collections.abc import Callable, Iterator, Sequence

from server.doctor.gpu_facts import NVML_MISSING, TENSORRT_LIBRARIES, Build, Driver, Library
from server.doctor.report import Check, Mark
from server.inference.devices import CUDA, GPU_BY_MAKE, GPU_BY_PIP, TENSORRT

# Of onnxruntime-gpu 1.31, which is built for CUDA 13.
OLDEST_DRIVER = 580
OLDEST_COMPUTE_CAPABILITY = (7, 5)

INSTALL_GPU = (f"in a checkout: {GPU_BY_MAKE}", f"elsewhere: {GPU_BY_PIP}")
INSTALL_DRIVER = (
    f"install NVIDIA's driver R{OLDEST_DRIVER} or newer; on Ubuntu: "
    f"sudo apt install nvidia-driver-{OLDEST_DRIVER}-server && sudo reboot"
)
SHOW_GPU = "in a container: start it with --gpus all (needs the NVIDIA Container Toolkit)"
INSTALL_TENSORRT = (
    "pip install 'tensorrt-cu13<11'",
    "export LD_LIBRARY_PATH=$(python -c 'import tensorrt_libs; print(tensorrt_libs.__path__[0])')",
)
NO_GPU = "no NVIDIA GPU is visible to this process"


def check_gpu(
    device: str,
    *,
    visible: bool,
    build: Build,
    driver: Driver,
    libraries: Callable[[], Sequence[Library]],
) -> Iterator[Check]:
    """All that stands between the model and a GPU.

    Args:
        device: the setting.
        visible: as `server.inference.devices.gpu_visible` says.
        build: of ONNX Runtime.
        driver: as `read_driver` returns it.
        libraries: looks for them; only called where that matters.
    """
    section = "GPU"
    if device == "cpu" or (device == "auto" and not visible):
        text = NO_GPU if not visible else "not asked for: device is cpu"
        yield Check(section, "GPU", "info", text)
        return
    bad: Mark = "warn" if device == "auto" else "fail"
    if not visible:
        yield Check(section, "GPU", bad, NO_GPU, (INSTALL_DRIVER, SHOW_GPU))
    elif driver.problem:
        fixes = INSTALL_GPU if driver.problem == NVML_MISSING else (INSTALL_DRIVER, SHOW_GPU)
        yield Check(section, "driver", bad, driver.problem, fixes)
    if driver.version is not None:
        yield _check_driver(driver.version, bad)
    for index, gpu in enumerate(driver.gpus):
        name = f"GPU {index}"
        size = "" if gpu.memory_bytes is None else f", {gpu.memory_bytes / 2**30:.0f} GiB"
        text = "{}{}, compute capability {}.{}".format(gpu.name, size, *gpu.compute_capability)
        if gpu.compute_capability >= OLDEST_COMPUTE_CAPABILITY:
            yield Check(section, name, "ok", text)
        else:
            text += ", and ONNX Runtime is built for {}.{} or newer".format(
                *OLDEST_COMPUTE_CAPABILITY
            )
            yield Check(section, name, bad, text, ("serve on the CPU: --device cpu",))
    provider = TENSORRT if device == "tensorrt" else CUDA
    if provider not in build.providers:
        text = f"ONNX Runtime is built without {provider}"
        yield Check(section, "build", bad, text, INSTALL_GPU)
        return
    yield Check(section, "build", "ok", f"ONNX Runtime is built with {provider}")
    found = libraries()
    for library in found:
        if library.path is not None:
            yield Check(section, library.name, "ok", library.path)
    for name, fixes, of_tensorrt in (
        ("CUDA libraries", INSTALL_GPU, False),
        ("TensorRT", INSTALL_TENSORRT, True),
    ):
        missing = [
            _missing(library)
            for library in found
            if library.path is None and (library.name in TENSORRT_LIBRARIES) == of_tensorrt
        ]
        if missing:
            yield Check(section, name, bad, f"missing: {', '.join(missing)}", fixes)


def _missing(library: Library) -> str:
    text = f"{library.name} (of {library.package})"
    # The system's words for the usual case only repeat the name.
    usual = "No such file" in library.problem
    return text if usual else f"{text}, which does not load: {library.problem}"


def _check_driver(version: str, bad: Mark) -> Check:
    if int(version.partition(".")[0]) >= OLDEST_DRIVER:
        return Check("GPU", "driver", "ok", version)
    text = f"{version}: CUDA 13 needs R{OLDEST_DRIVER} or newer"
    return Check("GPU", "driver", bad, text, (INSTALL_DRIVER,))
