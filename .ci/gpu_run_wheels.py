"""The wheels that the GPU run needs on a machine that reaches no package registry.

Followed requirement by requirement in the other machine's terms (its Python, its platform), at the
versions of constraints.txt; so nothing depends on what is installed here, or on this Python.
"""

import email
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name, parse_wheel_filename

REPO = Path(__file__).resolve().parents[1]
EXTRAS = ("gpu", "client")
# Of the group `dev`: what tests/gpu and benchmarks/gpu.py import. pip installs the rest.
FOR_TESTS = ("pip", "psutil", "pytest", "pytest-timeout")

Fetch = Callable[[Sequence[str], Path], None]


class Unresolved(Exception):
    """The set of wheels is not complete, or does not fit together; the text says why."""


def wanted(*, with_cuda: bool, repo: Path = REPO) -> list[Requirement]:
    """What the run needs by itself.

    Args:
        with_cuda: NVIDIA's CUDA libraries too (1.3 GB); else the other machine has them.
        repo: the checkout whose pyproject.toml says it.
    """
    table = tomllib.loads((repo / "pyproject.toml").read_text())
    lines = [*table["project"]["dependencies"], *FOR_TESTS]
    for extra in EXTRAS:
        lines += table["project"]["optional-dependencies"][extra]
    requirements = [Requirement(line) for line in lines]
    if not with_cuda:
        for each in requirements:
            each.extras -= {"cuda", "cudnn"}
    return requirements


def pins(constraints: Path = REPO / "constraints.txt") -> dict[str, str]:
    """The version of each package, by canonical name."""
    lines = constraints.read_text().splitlines()
    pairs = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {canonicalize_name(name): version.strip() for name, version in pairs}


def environment(python: str) -> dict[str, str]:
    """The markers' values on Linux, x86-64, CPython of a version such as "3.12"."""
    return {
        "implementation_name": "cpython",
        "implementation_version": f"{python}.0",
        "os_name": "posix",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
    }


def collect(
    folder: Path,
    requirements: Iterable[Requirement],
    versions: dict[str, str],
    python: str,
    fetch: Fetch,
) -> list[Path]:
    """Fetches wheels into a folder until each has what it declares.

    Args:
        folder: for the wheels; there may be some from before.
        requirements: where to begin.
        versions: by canonical name.
        python: of the other machine, such as "3.12".
        fetch: puts the wheels of `name==version` lines into a folder.

    Returns:
        The wheels that are needed, by name; others in the folder are not.

    Raises:
        Unresolved: a package has no pin, or a pin is not what another package asks for.
    """
    there = environment(python)
    # A package is looked at again for each further extra that it is asked for with.
    todo = [(each, "the run") for each in requirements]
    seen: set[tuple[str, str]] = set()
    needed: dict[str, Path] = {}
    while todo:
        for requirement, by in todo:
            _check(requirement, by, versions)
        missing = {
            f"{name}=={versions[name]}"
            for name in (canonicalize_name(each.name) for each, _ in todo)
            if _wheel(folder, name, versions[name]) is None
        }
        if missing:
            fetch(sorted(missing), folder)
        found: list[tuple[Requirement, str]] = []
        for requirement, _ in todo:
            name = canonicalize_name(requirement.name)
            wheel = _wheel(folder, name, versions[name])
            if wheel is None:
                raise Unresolved(f"{name}=={versions[name]} was not fetched")
            needed[name] = wheel
            for extra in ("", *sorted(requirement.extras)):
                if (name, extra) not in seen:
                    seen.add((name, extra))
                    found += [(each, name) for each in declared(wheel, there, extra, python)]
        todo = found
    return [needed[name] for name in sorted(needed)]


def declared(wheel: Path, there: Mapping[str, str], extra: str, python: str) -> list[Requirement]:
    """What a wheel asks for, with one extra or, for "", without any.

    Raises:
        Unresolved: it is not for that Python.
    """
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (
            each
            for each in archive.namelist()
            if each.count("/") == 1 and each.endswith(".dist-info/METADATA")
        )
        metadata = email.message_from_bytes(archive.read(name))
    if not SpecifierSet(metadata.get("Requires-Python", "")).contains(f"{python}.99"):
        raise Unresolved(f"{wheel.name} is not for Python {python}")
    requirements = [Requirement(line) for line in metadata.get_all("Requires-Dist") or []]
    values = {**there, "extra": extra}
    return [each for each in requirements if each.marker is None or each.marker.evaluate(values)]


def fetch_with_pip(python: str, glibc: tuple[int, int]) -> Fetch:
    """Downloads with pip, for x86-64 and a system of that glibc or a newer one."""
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in range(glibc[1], 4, -1)]
    platforms += [f"manylinux{each}_x86_64" for each in ("2014", "2010", "1")]

    def fetch(lines: Sequence[str], folder: Path) -> None:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
        command += [str(folder), "--only-binary=:all:", "--implementation", "cp"]
        command += ["--python-version", python]
        for each in platforms:
            command += ["--platform", each]
        subprocess.run([*command, *lines], check=True, timeout=1800)

    return fetch


def _check(requirement: Requirement, by: str, versions: dict[str, str]) -> None:
    name = canonicalize_name(requirement.name)
    if name not in versions:
        raise Unresolved(f"{by} asks for {requirement}, which constraints.txt does not pin")
    if not requirement.specifier.contains(versions[name], prereleases=True):
        raise Unresolved(f"{by} asks for {requirement}, constraints.txt has {versions[name]}")


def _wheel(folder: Path, name: str, version: str) -> Path | None:
    for path in sorted(folder.glob("*.whl")):
        there, its_version, _, _ = parse_wheel_filename(path.name)
        if (there, str(its_version)) == (name, version):
            return path
    return None
