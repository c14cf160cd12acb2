"""TensorRT's libraries, and the folder for what it builds."""

import ctypes
import logging
import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from server.errors import ProviderUnavailable, SettingsInvalid
from server.inference.artifact import Artifact
from server.ort import onnxruntime

# What ONNX Runtime's provider is linked with, in an order in which they can be loaded.
LIBRARIES = ("libnvinfer.so.10", "libnvonnxparser.so.10")
PACKAGE = "tensorrt_libs"  # of `pip install tensorrt-cu13`

_log = logging.getLogger(__name__)


def load_libraries(
    libraries: Sequence[str] = LIBRARIES,
    package: str = PACKAGE,
    load: Callable[[str], object] = lambda path: ctypes.CDLL(path, ctypes.RTLD_GLOBAL),
) -> None:
    """Loads TensorRT from where the system or pip has put it, as ONNX Runtime does not look there.

    Raises:
        ProviderUnavailable: it is not there, or not of the version that ONNX Runtime needs.
    """
    for library in libraries:
        try:
            load(library)
        except OSError as missing:
            folder = _package_folder(package)
            try:
                if folder is None:
                    raise missing
                load(str(folder / library))
            except OSError as error:
                raise ProviderUnavailable(
                    f"TensorRT 10 is needed, and cannot be loaded: {error}; install it from "
                    "NVIDIA's repository, or `pip install 'tensorrt-cu13<11'`"
                ) from None


def _package_folder(package: str) -> Path | None:
    found = find_spec(package)
    return Path(found.origin).parent if found and found.origin else None


def engine_folder(setting: Path | None, artifact: Artifact) -> Path | None:
    """The folder for what TensorRT builds of one artifact, made where it isn't there.

    Building takes minutes a shape. ONNX Runtime takes an engine by the names in the graph, and
    another model with the same names would run with the weights of this one; so each artifact has
    a folder of its own, and each release of ONNX Runtime.

    Args:
        setting: the folder of all; None stands for `~/.cache/yolov8-fla/tensorrt`, or for none
            where that cannot be written: then each start builds again, and a warning says so.
        artifact: which.

    Raises:
        SettingsInvalid: the folder that was set cannot be written.
    """
    try:
        parent = setting or Path.home() / ".cache" / "yolov8-fla" / "tensorrt"
        folder = parent / f"{artifact.version}-{onnxruntime().__version__}"
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except (OSError, RuntimeError) as error:  # the latter from home(), where there is none
        if setting is not None:
            raise SettingsInvalid(f"tensorrt_cache: {setting} cannot be written: {error}") from None
        _log.warning("TensorRT builds anew at each start, which takes minutes: %s", error)
        return None
    return folder
