import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import sbom

STATUS = """Package: libc6
Status: install ok installed
Architecture: amd64
Source: glibc
Version: 2.36-9+deb12u14
Description: GNU C Library: Shared libraries
 Contains the standard libraries.
Homepage: https://www.gnu.org/software/libc/

Package: zlib1g
Status: install ok installed
Architecture: amd64
Source: zlib
Version: 1:1.2.13
Description: compression library

Package: bsdutils
Essential: yes
Status: install ok installed
Architecture: amd64
Source: util-linux (2.38.1-5)
Version: 1:2.38.1-5+b1
Description: basic utilities

Package: removed
Status: deinstall ok config-files
Architecture: amd64
Version: 1
Description: gone
"""
OS_RELEASE = """PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"
NAME="Debian GNU/Linux"
VERSION_ID="12"
ID=debian
"""
SYSTEM = {"ID": "debian", "VERSION_ID": "12", "PRETTY_NAME": "Debian GNU/Linux 12 (bookworm)"}
# A tool that is used like docker, around one image: the folder beside it.
TOOL = """
import sys, tarfile, pathlib
folder, (command, name) = pathlib.Path(sys.argv[1]), sys.argv[2:]
log = folder.with_suffix(".log").open("a")
print(command, name, file=log)
if command == "create":
    if name != "there:1":
        sys.exit("no such image")
    print("container-1")
elif command == "export":
    with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as archive:
        archive.add(folder, arcname=".")
"""


def distribution(folder: Path, name: str, version: str, *lines: str) -> Path:
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    head = ["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}"]
    (info / "METADATA").write_text("\n".join([*head, *lines]) + "\n")
    return info


def bundling(info: Path, **content: Any) -> None:
    (info / "sboms").mkdir()
    (info / "sboms" / "wheel.json").write_text(json.dumps(content))


def named(bill: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {component["name"]: component for component in bill["components"]}


def test_packages_of_debian_are_told_with_their_source_for_advisories() -> None:
    libc, zlib, utils = sbom.debian(STATUS, SYSTEM)
    assert libc["version"] == "2.36-9+deb12u14"
    assert libc["description"] == "GNU C Library: Shared libraries"
    assert libc["purl"] == (
        "pkg:deb/debian/libc6@2.36-9%2Bdeb12u14?arch=amd64&distro=debian-12&upstream=glibc"
    )
    assert zlib["purl"].endswith("&upstream=zlib")
    # Compared with 1:2.38.1-5, every fix of util-linux would look older, and none be missing.
    assert utils["purl"].endswith("&upstream=util-linux%402.38.1-5")


def test_the_fields_of_a_system_are_read() -> None:
    assert sbom.fields(OS_RELEASE, "=").items() >= SYSTEM.items()


def test_what_a_wheel_says_that_it_bundles_is_told_once(tmp_path: Path) -> None:
    info = distribution(tmp_path, "Some.Library", "1.0")
    ours = {"name": "some_library", "version": "1.0"}
    jpeg = {"name": "libjpeg", "version": "9", "purl": "pkg:rpm/x/libjpeg@9", "licenses": "?"}
    bundling(info, bomFormat="CycloneDX", components=[ours, jpeg, dict(jpeg), {"name": "png"}])
    assert list(sbom.bundled(info, "owner")) == [
        {
            "type": "library",
            "bom-ref": "owner#1",
            "name": "libjpeg",
            "version": "9",
            "purl": "pkg:rpm/x/libjpeg@9",
        },
        {"type": "library", "bom-ref": "owner#2", "name": "png"},
    ]


def test_a_bill_in_another_form_is_passed_over(tmp_path: Path) -> None:
    info = distribution(tmp_path, "one", "1.0")
    bundling(info, spdxVersion="SPDX-2.3", packages=[{"name": "libjpeg"}])
    assert list(sbom.bundled(info, "owner")) == []


@pytest.mark.parametrize("wrong", [{"type": "no such type"}, {"licenses": 3}, {"purl": 1}])
def test_what_the_schema_forbids_is_not_written(wrong: dict[str, Any]) -> None:
    component = {"type": "library", "bom-ref": "a", "name": "a"}
    bill = {"bomFormat": "CycloneDX", "specVersion": "1.6", "metadata": {}}
    assert sbom.written(bill | {"components": [component]}, {})
    with pytest.raises(ValueError, match="not a valid bill"):
        sbom.written(bill | {"components": [component | wrong]}, {})


@pytest.fixture
def image(tmp_path: Path) -> tuple[list[str], Path]:
    """A tool like docker, and the file system of the image `there:1`."""
    folder = tmp_path / "image"
    packages = folder / "opt/venv/lib/python3.11/site-packages"
    one = distribution(
        packages, "one", "1.0", "License-Expression: MIT OR Apache-2.0", "Requires-Dist: Two-2>=2"
    )
    bundling(one, bomFormat="CycloneDX", components=[{"name": "libjpeg", "version": "9"}])
    distribution(packages, "two.2", "2.0", "License-Expression: BSD-3-Clause")
    distribution(packages, "yolov8-fla", "9.9")
    (packages / "one.py").write_text("raise SystemExit('an image is not run')")
    for name, content in (("var/lib/dpkg/status", STATUS), ("usr/lib/os-release", OS_RELEASE)):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(content)
    script = tmp_path / "tool.py"
    script.write_text(TOOL)
    return [sys.executable, str(script), str(folder)], folder


@pytest.mark.slow
def test_the_bill_of_an_image_tells_all_that_is_in_it(image: tuple[list[str], Path]) -> None:
    tool, folder = image
    text = sbom.of_image(tool, "there:1", {"image": "there:1"})
    bill = json.loads(text)
    found = named(bill)
    # The project is what the bill is about, and this environment's own packages are not in it.
    assert found.keys() == {"one", "two.2", "libc6", "zlib1g", "bsdutils", "debian"}
    assert bill["metadata"]["component"]["name"] == "yolov8-fla"
    assert found["one"]["purl"] == "pkg:pypi/one@1.0"
    assert found["one"]["licenses"][0]["expression"] == "MIT OR Apache-2.0"
    assert found["two.2"]["licenses"][0]["license"]["id"] == "BSD-3-Clause"
    assert [each["name"] for each in found["one"]["components"]] == ["libjpeg"]
    needed = {each["ref"]: each.get("dependsOn") for each in bill["dependencies"]}
    assert needed["one==1.0"] == ["two.2==2.0"]
    told = {each["name"]: each["value"] for each in bill["metadata"]["properties"]}
    assert told["yolov8-fla:image"] == "there:1"
    # The same again: no time and no chance in it, and no container is left.
    assert sbom.of_image(tool, "there:1", {"image": "there:1"}) == text
    log = folder.with_suffix(".log").read_text().split("\n")
    assert log[:3] == ["create there:1", "export container-1", "rm container-1"]


def test_an_image_that_is_not_there_has_no_bill(image: tuple[list[str], Path]) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        sbom.of_image(image[0], "another:1", {})


def wheel(folder: Path, name: str, version: str, *lines: str) -> Path:
    """A wheel that holds nothing but what pip reads."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    head = ["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}", *lines]
    files = {
        "METADATA": "\n".join(head) + "\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for file, content in files.items():
            archive.writestr(f"{name}-{version}.dist-info/{file}", content)
    return path


@pytest.mark.slow
def test_the_bill_of_an_extra_tells_what_pip_would_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = wheel(
        tmp_path,
        "yolov8_fla",
        "1.0",
        "Requires-Dist: always",
        "Provides-Extra: cpu",
        'Requires-Dist: only-cpu; extra == "cpu"',
    )
    wheel(tmp_path, "always", "1.0", "License-Expression: MIT")
    wheel(tmp_path, "only_cpu", "3.0")
    taken = wheel(tmp_path, "only_cpu", "2.0", "Classifier: License :: OSI Approved :: MIT License")
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("only-cpu==2.0\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    bill = json.loads(sbom.of_extra(ours, "cpu", constraints, {}))
    found = named(bill)
    assert {name: each["version"] for name, each in found.items()} == {
        "always": "1.0",
        "only_cpu": "2.0",
    }
    sha256 = hashlib.sha256(taken.read_bytes()).hexdigest()
    assert found["only_cpu"]["hashes"] == [{"alg": "SHA-256", "content": sha256}]
    assert found["always"]["licenses"][0]["license"]["id"] == "MIT"
