"""The command: checks everything that the server needs, and reports it."""

from collections.abc import Mapping, Sequence

from server.doctor.gpu import check_gpu
from server.doctor.gpu_facts import (
    CUDA_LIBRARIES,
    TENSORRT_LIBRARIES,
    find_libraries,
    read_build,
    read_driver,
)
from server.doctor.host import check_machine, check_software
from server.doctor.model import check_model
from server.doctor.report import Check, Report
from server.doctor.start import check_settings
from server.errors import SettingsInvalid
from server.host import cpu_quota, memory_limit
from server.inference.devices import gpu_visible
from server.settings import Settings


def main(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    prog: str = "python -m server doctor",
) -> bool:
    """Prints what there is to say; returns whether the server would start as it is configured.

    Args:
        arguments: flags of the server, and `--json`.
        environment: of the process.
        prog: what help names the program.
    """
    flags = [each for each in arguments if each != "--json"]
    problems = []
    try:
        settings = Settings.load(flags, environment, prog)
    except SettingsInvalid as error:
        problems.append(Check("Settings", "settings", "fail", f"{error}; the rest: by defaults"))
        settings = Settings.model_construct()
    report = Report((*examine(settings, environment).checks, *problems))
    print(report.json() if "--json" in arguments else report.text())
    return report.would_start


def examine(settings: Settings, environment: Mapping[str, str]) -> Report:
    """Looks at software, machine, GPU and settings, and loads the model and runs it."""
    build = read_build()
    # First: what is loaded below to look at it must not be what makes the model run.
    model = tuple(check_model(settings, build, gpu_visible=gpu_visible()))
    libraries_by_package = CUDA_LIBRARIES | (
        TENSORRT_LIBRARIES if settings.device == "tensorrt" else {}
    )
    return Report(
        (
            *check_software(build, environment),
            *check_machine(cpu_quota(), memory_limit()),
            *check_gpu(
                settings.device,
                visible=gpu_visible(),
                build=build,
                driver=read_driver(),
                libraries=lambda: find_libraries(libraries_by_package),
            ),
            *model,
            *check_settings(settings),
        )
    )
