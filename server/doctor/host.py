"""The software that is installed, and the machine below it."""

import os
import platform
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata

import cv2

from server.doctor.gpu_facts import Build
from server.doctor.report import Check
from server.host import available_cpus, cpu_name, integer_instructions, machine_bytes
from server.serving.decode_pool import body_share, decoding_share
from server.version import DISTRIBUTION, UNKNOWN, this_build

# A test holds the server at rest below 300 MB; images and bodies come on top.
AT_REST_BYTES = 300 * 2**20
LEAST_MEMORY_BYTES = 512 * 2**20
PACKAGES = ("fastapi", "starlette", "uvicorn", "uvloop", "httptools", "orjson", "numpy", "pydantic")

INSTALL_ANEW = (
    "in a checkout: make clean && make serve",
    "elsewhere: pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'yolov8-fla[cpu]' "
    "(or [gpu])",
)


def check_software(build: Build, environment: Mapping[str, str]) -> Iterator[Check]:
    """Python, ONNX Runtime and other packages.

    Args:
        build: of ONNX Runtime.
        environment: of the process.
    """
    section = "Software"
    installed, revision = this_build()
    text = f"{installed}, commit {revision or UNKNOWN}"
    yield Check(section, DISTRIBUTION, "info", text)
    yield Check(section, "Python", "ok", f"{platform.python_version()}, {sys.executable}")
    packages = " and ".join(f"{name} {version}" for name, version in build.packages.items())
    if build.problem:
        text = f"{packages or 'not installed'}: {build.problem}"
        yield Check(section, "ONNX Runtime", "fail", text, INSTALL_ANEW)
    elif len(build.packages) > 1:
        text = f"{packages} are both installed; they share their files, and one is broken"
        yield Check(section, "ONNX Runtime", "warn", text, INSTALL_ANEW)
    else:
        providers = ", ".join(name.removesuffix("ExecutionProvider") for name in build.providers)
        kind = "GPU build" if "onnxruntime-gpu" in build.packages else "CPU build"
        text = f"{packages or 'not installed by pip'}, {kind} ({providers})"
        yield Check(section, "ONNX Runtime", "ok", text)
    versions = [f"{name} {_version(name)}" for name in PACKAGES]
    yield Check(section, "packages", "info", ", ".join([*versions, f"opencv {cv2.__version__}"]))
    if environment.get("ORT_DISABLE_TELEMETRY", "1") == "1":
        yield Check(section, "telemetry", "ok", "ONNX Runtime's is off")
    else:
        text = "ONNX Runtime's is on: ORT_DISABLE_TELEMETRY is set, and not to 1"
        yield Check(section, "telemetry", "warn", text, ("unset ORT_DISABLE_TELEMETRY",))


def check_machine(quota: float | None, memory_bytes: int | None) -> Iterator[Check]:
    """CPUs and memory.

    Args:
        quota: as `server.host.cpu_quota` gives it.
        memory_bytes: as `server.host.memory_limit` gives it.
    """
    section = "Machine"
    yield Check(section, "CPU", "info", cpu_name())
    instructions = integer_instructions() or "none that are known of (VNNI): int8 is slow here"
    yield Check(section, "int8 instructions", "info", instructions)
    affinity = len(os.sched_getaffinity(0))
    limit = f"a quota of {quota:g}" if quota else "no quota"
    text = f"{available_cpus()}: {os.cpu_count()} in the machine, {affinity} by affinity, {limit}"
    yield Check(section, "usable CPUs", "ok", text)
    available = min(memory_bytes or machine_bytes(), machine_bytes())
    bodies = body_share(available)
    decoding = decoding_share(
        available, resident_bytes=AT_REST_BYTES, canvas_bytes=0, inflight_body_bytes=bodies
    )
    text = (
        f"about {decoding / 2**20:.0f} MiB for what is decoded, {bodies / 2**20:.0f} MiB for "
        "bodies unless max_inflight_body_bytes says otherwise"
    )
    yield Check(section, "memory for images", "info", text)
    if memory_bytes is None:
        yield Check(section, "memory limit", "info", "none by control groups")
        return
    text, least = f"{memory_bytes / 2**20:.0f} MiB", LEAST_MEMORY_BYTES / 2**20
    if memory_bytes >= LEAST_MEMORY_BYTES:
        yield Check(section, "memory limit", "ok", text)
    else:
        text += ": the server at rest takes up to 300, and images come on top"
        yield Check(section, "memory limit", "warn", text, (f"raise it to {least:.0f} MiB",))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
