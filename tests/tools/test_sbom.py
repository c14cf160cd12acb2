import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import sbom

LISTING = "\n".join(
    "\t".join(fields)
    for fields in (
        ("debian", "12"),
        ("installed", "libc6", "2.36-9+deb12u14", "amd64", "glibc@2.36-9+deb12u14"),
        ("installed", "bsdutils", "1:2.38.1-5+b1", "amd64", "util-linux@2.38.1-5"),
        ("config-files", "removed", "1", "amd64", "removed@1"),
    )
)
# A tool that is used like docker, around one image whose files are in the folder beside it.
TOOL = """
import io, pathlib, sys, tarfile
folder, image, script = pathlib.Path(sys.argv[1]), sys.argv[-3], sys.argv[-1]
if image != "there:1":
    sys.exit("no such image")
if "dpkg-query" in script:
    print((folder / "listing").read_text())
else:
    with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as archive:
        for each in folder.glob("*.dist-info"):
            archive.add(each, arcname=each.name)
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
    system, libc, utils = sbom.debian(LISTING)
    assert (system["name"], system["version"]) == ("debian", "12")
    assert libc["version"] == "2.36-9+deb12u14"
    assert libc["purl"] == (
        "pkg:deb/debian/libc6@2.36-9%2Bdeb12u14"
        "?arch=amd64&distro=debian-12&upstream=glibc%402.36-9%2Bdeb12u14"
    )
    # Compared with 1:2.38.1-5, every fix of util-linux would look older, and none be missing.
    assert utils["purl"].endswith("&upstream=util-linux%402.38.1-5")


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
    assert sbom.checked(bill | {"components": [component]})
    with pytest.raises(ValueError, match="not a valid bill"):
        sbom.checked(bill | {"components": [component | wrong]})


@pytest.fixture
def image(tmp_path: Path) -> list[str]:
    """A tool like docker that has the image `there:1`."""
    folder = tmp_path / "image"
    one = distribution(
        folder, "one", "1.0", "License-Expression: MIT OR Apache-2.0", "Requires-Dist: Two-2>=2"
    )
    bundling(one, bomFormat="CycloneDX", components=[{"name": "libjpeg", "version": "9"}])
    distribution(folder, "two.2", "2.0", "License-Expression: BSD-3-Clause")
    distribution(folder, "yolov8-fla", "9.9")
    (folder / "listing").write_text(LISTING)
    script = tmp_path / "tool.py"
    script.write_text(TOOL)
    return [sys.executable, str(script), str(folder)]


@pytest.mark.slow
def test_the_bill_of_an_image_tells_all_that_is_in_it(image: list[str]) -> None:
    text = sbom.of_image(image, "there:1")
    bill = json.loads(text)
    found = named(bill)
    # The project is what the bill is about, and this environment's own packages are not in it.
    assert found.keys() == {"one", "two.2", "libc6", "bsdutils", "debian"}
    assert bill["metadata"]["component"]["name"] == "yolov8-fla"
    assert found["one"]["purl"] == "pkg:pypi/one@1.0"
    assert found["one"]["licenses"][0]["expression"] == "MIT OR Apache-2.0"
    assert found["two.2"]["licenses"][0]["license"]["id"] == "BSD-3-Clause"
    assert [each["name"] for each in found["one"]["components"]] == ["libjpeg"]
    needed = {each["ref"]: each.get("dependsOn") for each in bill["dependencies"]}
    assert needed["one==1.0"] == ["two.2==2.0"]
    assert sbom.of_image(image, "there:1") == text  # no time and no chance in it


def test_an_image_that_is_not_there_has_no_bill(image: list[str]) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        sbom.of_image(image, "another:1")


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
    bill = json.loads(sbom.of_requirement(f"{ours}[cpu]", constraints))
    found = named(bill)
    assert {name: each["version"] for name, each in found.items()} == {
        "always": "1.0",
        "only_cpu": "2.0",
    }
    sha256 = hashlib.sha256(taken.read_bytes()).hexdigest()
    assert found["only_cpu"]["hashes"] == [{"alg": "SHA-256", "content": sha256}]
    assert found["always"]["licenses"][0]["license"]["id"] == "MIT"
