"""The other machine's side of the GPU run: an environment of the carried wheels, and steps in it.

Needs nothing but Python. The environment shares nothing with the Python that makes it, whose own
packages would be of other versions; only NVIDIA's CUDA libraries, if they were not carried along.
"""

import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO
from xml.etree import ElementTree

import gpu_run_parts
from gpu_run_parts import Incomplete

REPO = Path(__file__).resolve().parents[1]
RUNTIME = "libcudart.so.*"  # CUDA libraries are where this is
FILES, FILE_BYTES = 8, 16 * 2**20  # what one run hands out at most
LOG_BYTES = 4 * 2**20
# The quick ones first, and what loses a context or takes minutes last; then those not named here.
TEST_FILES = (
    *("placement", "refusal", "server", "hard_activations", "parity", "sessions"),
    *("lost_context", "memory", "tensorrt"),
)
OUTCOMES = {0: "passed", 1: "failed", 5: "nothing was chosen", 124: "cut off: time was over"}
ENDING_S = 20  # for a step that was told to end to write what it has

FACTS = """
import json, sys
from importlib.metadata import distributions
from pathlib import Path
import onnxruntime
from server.inference.repository import load_model
from server.inference.session import Session

print(*sorted(f"{each.name}=={each.version}" for each in distributions()))
print("onnxruntime", onnxruntime.__version__, onnxruntime.get_available_providers())
print(onnxruntime.get_build_info())
for artifact in load_model(Path("weights")):
    if artifact.metadata.precision != "int8":
        session = Session.open(artifact, device=sys.argv[1])
        counts = {}
        for provider, nodes in session.nodes.items():
            for node in nodes:
                count = counts.setdefault(provider, {})
                count[node.operator] = count.get(node.operator, 0) + 1
        print(artifact.metadata.precision, session.provider, session.device, json.dumps(counts))
        print("copies inside the graph:", session.copies)
"""


def install(store: Path, cuda_from: Sequence[Path] = ()) -> Path:
    """Makes the environment `env` in the store, out of its parts.

    Args:
        store: has all parts.
        cuda_from: folders to look for a folder `nvidia` with CUDA libraries in, first; then those
            of the Python that runs this. It is linked into the environment, where ONNX Runtime
            looks for it.

    Returns:
        The environment's Python.

    Raises:
        Incomplete: parts are missing or damaged, or are for another Python.
    """
    expected, here = gpu_run_parts.Parts.read(store).python, "{}.{}".format(*sys.version_info)
    if expected != here:
        raise Incomplete(f"the wheels are for Python {expected}, and {sys.executable} is {here}")
    wheels = gpu_run_parts.join(store, store / "wheels")
    env = store / "env"
    # Without pip: Debian's Python cannot put it in. It is among the wheels.
    venv.EnvBuilder(clear=True, symlinks=True, with_pip=False).create(env)
    python = python_of(store)
    (pip,) = (each for each in wheels if each.name.startswith("pip-"))
    command = [str(python), f"{pip}/pip", "install", "--quiet", "--no-index", "--no-deps"]
    command += ["--no-compile", "--no-cache-dir", "--disable-pip-version-check"]
    subprocess.run([*command, *map(str, wheels)], check=True)
    shutil.rmtree(store / "wheels")  # the parts stay
    print(f"{len(wheels)} wheels installed into {env}")
    link_cuda(python, [*cuda_from, *map(Path, sys.path)])
    return python


def link_cuda(python: Path, folders: Iterable[Path]) -> Path | None:
    """Makes the CUDA libraries of other packages findable for the environment's ONNX Runtime.

    Args:
        python: the environment's.
        folders: where packages are.

    Returns:
        What was linked; None where the environment has its own, or there are none.
    """
    (site,) = python.parents[1].glob("lib/python*/site-packages")
    own = site / "nvidia"
    if not own.is_symlink() and any(own.glob(f"*/lib/{RUNTIME}")):
        print(f"CUDA libraries: of the environment, {own}")
        return None
    for folder in folders:
        nvidia = folder / "nvidia"
        if any(nvidia.glob(f"*/lib/{RUNTIME}")):
            if own.is_symlink():
                own.unlink()
            elif own.is_dir():
                shutil.rmtree(own)
            own.symlink_to(nvidia.resolve())
            print(f"CUDA libraries: {own} -> {nvidia.resolve()}")
            return nvidia
    print("CUDA libraries: none found among packages; the system's may serve")
    return None


def python_of(store: Path) -> Path:
    """The environment's Python."""
    return store / "env" / "bin" / "python"


def prove(store: Path, out: Path, device: str) -> int:
    """Writes `environment.txt`: the machine, the versions, and where the default model runs.

    Returns:
        0 if it runs on the device: what the server's doctor says.
    """
    with (out / "environment.txt").open("w") as log:
        say(f"{time.strftime('%Y-%m-%d %H:%M:%S %z')}  {platform.platform()}", log)
        say(f"glibc {platform.libc_ver()[1]}, Python {sys.version}, CPUs {os.cpu_count()}", log)
        say(f"memory {_memory_gib():.0f} GiB, {_processor()}", log)
        python = str(python_of(store))
        run(["nvidia-smi"], log, 60)
        query = "--query-gpu=name,driver_version,compute_cap,memory.total,clocks.max.sm,power.limit"
        run(["nvidia-smi", query, "--format=csv"], log, 60)
        for library in cuda_libraries(store):
            say(f"{library.name} {library.resolve().name} {library.parent}", log)
        flags = ["--device", device, "--model", "weights", "--port", "0"]
        doctor = run([python, "-m", "server", "doctor", *flags], log, 300)
        facts = run([python, "-c", FACTS, device], log, 300)
    return doctor or facts


def cuda_libraries(store: Path) -> list[Path]:
    """The CUDA libraries that the environment's ONNX Runtime finds among packages."""
    folders = python_of(store).parents[1].glob("lib/python*/site-packages/nvidia/*/lib")
    return sorted(each for folder in folders for each in folder.glob("lib*.so.*"))


def test(
    store: Path, out: Path, only: Sequence[str] | None, arguments: Sequence[str], limit_s: float
) -> int:
    """Runs tests/gpu: each file in a process of its own, as a fault of CUDA ends its process.

    Writes `tests.txt`, what pytest says, and `tests.xml`, all results in JUnit's form.

    Args:
        store: has the environment.
        out: for the two files.
        only: names of files, `NAME` for tests/gpu/test_NAME.py; None runs all.
        arguments: for pytest.
        limit_s: seconds for all of them.

    Returns:
        0 when all passed; 124 when time was over.
    """
    files = [REPO / f"tests/gpu/test_{name}.py" for name in only or TEST_FILES]
    if only is None:
        files += sorted({*REPO.glob("tests/gpu/test_*.py")} - {*files})
    end, codes, results = time.monotonic() + limit_s, {}, ElementTree.Element("testsuites")
    with (out / "tests.txt").open("w") as log, tempfile.TemporaryDirectory() as scratch:
        for file in files:
            left_s = end - time.monotonic()
            if left_s < 1:
                codes[file.stem] = 124
                continue
            report = Path(scratch) / f"{file.stem}.xml"
            command = [str(python_of(store)), "-m", "pytest", str(file.relative_to(REPO)), "-v"]
            command += ["--tb=short", "-p", "no:cacheprovider", f"--junitxml={report}"]
            command += ["-o", "junit_family=xunit1"]  # which has properties
            codes[file.stem] = run([*command, *arguments], log, left_s)
            if report.is_file():
                results.extend(ElementTree.parse(report).getroot().iter("testsuite"))
            ElementTree.ElementTree(results).write(out / "tests.xml", encoding="unicode")
        for name, code in codes.items():
            say(f"{name}: {OUTCOMES.get(code, f'exit code {code}')}", log)
    return next((code for code in codes.values() if code not in (0, 5)), 0)


def step(store: Path, out: Path, name: str, arguments: Sequence[str], limit_s: float) -> int:
    """Runs the environment's Python in the checkout; what it prints goes to `name.txt`, too.

    Args:
        store: has the environment.
        out: for the log.
        name: of the step.
        arguments: of Python.
        limit_s: seconds; then it is told to end, as by Ctrl-C, and later made to.

    Returns:
        Its exit code; 124 when it was told to end.
    """
    with (out / f"{name}.txt").open("w") as log:
        code = run([str(python_of(store)), *arguments], log, limit_s)
        say(f"{name}: exit code {code}", log)
    return code


def run(command: Sequence[str], log: IO[str], limit_s: float) -> int:
    """Runs a command and writes what it prints to the terminal and, up to 4 MiB, to a log."""
    say(f"$ {' '.join(command)}"[:2000], log)
    started = time.monotonic()
    variables = {name: value for name, value in os.environ.items() if name not in _NOT_HANDED_ON}
    try:
        process = subprocess.Popen(
            command,
            cwd=REPO,
            env=variables | {"PYTHONUNBUFFERED": "1", "ORT_DISABLE_TELEMETRY": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # so that all of it can be ended
        )
    except OSError as error:
        say(f"{command[0]}: {error.strerror}", log)
        return 127
    late = threading.Event()

    def end() -> None:
        late.set()
        _signal(process, signal.SIGINT)

    timers = [
        threading.Timer(limit_s, end),
        threading.Timer(limit_s + ENDING_S, lambda: _signal(process, signal.SIGKILL)),
    ]
    for timer in timers:
        timer.start()
    with process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                say(line.rstrip("\n"), log)
            code = process.wait()
        finally:
            for timer in timers:
                timer.cancel()
            _signal(process, signal.SIGKILL)  # whatever it left
    say(f"took {time.monotonic() - started:.1f} s{', cut off' if late.is_set() else ''}", log)
    return 124 if late.is_set() else code


def say(line: str, log: IO[str]) -> None:
    """A line for the terminal, and for the log while that is small."""
    print(line, flush=True)
    if log.tell() < LOG_BYTES:
        log.write(line + "\n")
        log.flush()


def check_output(out: Path) -> bool:
    """Lists what a run hands out; whether that is few enough files, and small enough."""
    files = sorted(path for path in out.rglob("*") if path.is_file())
    large = [path for path in files if path.stat().st_size > FILE_BYTES]
    for path in files:
        print(f"{path.relative_to(out)}: {path.stat().st_size} bytes")
    for path in large:
        print(f"{path}: over {FILE_BYTES} bytes", file=sys.stderr)
    if len(files) > FILES:
        print(f"{out}: {len(files)} files, more than {FILES}", file=sys.stderr)
    return not large and len(files) <= FILES


# Of the Python that this runs in; the environment has its own packages.
_NOT_HANDED_ON = frozenset({"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTEST_ADDOPTS"})


def _signal(process: subprocess.Popen[str], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _processor() -> str:
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.machine()
