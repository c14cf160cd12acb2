"""Bills of materials, CycloneDX 1.6 as JSON: what an image holds, and what an extra brings along.

They list Python's distributions with licences, the libraries that wheels bundle where these say so
(PEP 770), and Debian's packages. Licences of the bundled and of Debian's are not told. The same
image and the same distributions give the same bytes.
"""

import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PathDistribution
from pathlib import Path
from typing import Any, cast

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
from packaging.utils import canonicalize_name

REPO = Path(__file__).resolve().parents[1]
SPEC = "1.6"
# What of an image's file system is looked at.
_WANTED = re.compile(r".*\.dist-info/.*|var/lib/dpkg/status|usr/lib/os-release")

Component = dict[str, Any]


def of_image(tool: Sequence[str], image: str, properties: Mapping[str, str]) -> str:
    """The bill of an image, which is read and not run.

    Args:
        tool: a command that is used like docker.
        image: its name.
        properties: more to say about it; names become `yolov8-fla:NAME`.

    Returns:
        JSON.

    Raises:
        subprocess.CalledProcessError: the tool has no such image.
        ValueError: no distribution is in it.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        unpack(tool, image, folder)
        installed = sorted({path.parent for path in folder.rglob("*.dist-info")})
        if not installed:
            raise ValueError(f"{image}: no Python distribution is in it")
        bill = of_distributions(installed)
        status, release = folder / "var/lib/dpkg/status", folder / "usr/lib/os-release"
        if status.exists():
            system = fields(release.read_text(), "=")
            bill["components"] += [operating_system(system), *debian(status.read_text(), system)]
    return written(bill, properties)


def of_extra(wheel: Path, extra: str, constraints: Path, properties: Mapping[str, str]) -> str:
    """The bill of what pip would install for a wheel with one of its extras, on this platform.

    Args:
        wheel: the project's.
        extra: such as "cpu".
        constraints: exact versions.
        properties: as of `of_image`.

    Returns:
        JSON; a distribution has the SHA-256 of the file that pip would take.

    Raises:
        subprocess.CalledProcessError: pip finds no such versions.
    """
    with tempfile.TemporaryDirectory() as name:
        folder, report = Path(name, "packages"), Path(name, "report.json")
        pip = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        # fast-deps reads the metadata out of a remote wheel, where the index allows it
        pip += ["--dry-run", "--ignore-installed", "--use-feature=fast-deps"]
        pip += ["--report", str(report), "-c", str(constraints), f"{wheel}[{extra}]"]
        subprocess.run(pip, check=True, timeout=1800)
        found = json.loads(report.read_text())["install"]
        write_metadata((each["metadata"] for each in found), folder)
        bill = of_distributions([folder])
    hashes = {
        canonicalize_name(each["metadata"]["name"]): each["download_info"]
        .get("archive_info", {})
        .get("hashes", {})
        for each in found
    }
    for component in bill["components"]:
        sha256 = hashes[canonicalize_name(component["name"])].get("sha256")
        if sha256:
            component["hashes"] = [{"alg": "SHA-256", "content": sha256}]
    return written(bill, {"extra": extra, **properties})


def of_distributions(folders: Sequence[Path]) -> dict[str, Any]:
    """The bill of the distributions whose `.dist-info` lies in some folders."""
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible"]
    command += ["--spec-version", SPEC, "--output-format", "JSON"]
    command += ["--pyproject", str(REPO / "pyproject.toml"), "--mc-type", "application"]
    # -S keeps this environment's own distributions out, and PYTHONPATH puts those folders in.
    path = os.pathsep.join(map(str, folders))
    done = subprocess.run(
        [*command, "-S", sys.executable],
        env=os.environ | {"PYTHONPATH": path},
        check=True,
        stdout=subprocess.PIPE,
        timeout=600,
    )
    bill: dict[str, Any] = json.loads(done.stdout)
    components = {canonicalize_name(each["name"]): each for each in bill["components"]}
    for info in sorted(path for folder in folders for path in folder.glob("*.dist-info")):
        component = components.get(canonicalize_name(PathDistribution(info).metadata["Name"]))
        inside = list(bundled(info, component["bom-ref"])) if component else []
        if component and inside:
            component["components"] = inside
    return bill


def bundled(dist_info: Path, owner: str) -> Iterator[Component]:
    """What a distribution says that its files bundle (PEP 770), each once.

    Args:
        dist_info: its folder of metadata; bills in another form than CycloneDX are passed over.
        owner: its reference, to which those of the bundled are added.
    """
    seen = set()
    itself = canonicalize_name(PathDistribution(dist_info).metadata["Name"])
    for file in sorted(dist_info.glob("sboms/*.json")):
        bill = json.loads(file.read_bytes())
        if bill.get("bomFormat") != "CycloneDX":
            continue
        for each in bill.get("components", ()):
            kept = {key: each[key] for key in ("name", "version", "purl") if each.get(key)}
            key = tuple(kept.items())
            if canonicalize_name(each["name"]) != itself and key not in seen:
                seen.add(key)
                yield {"type": "library", "bom-ref": f"{owner}#{len(seen)}", **kept}


def debian(status: str, system: Mapping[str, str]) -> Iterator[Component]:
    """The installed packages that dpkg knows.

    Args:
        status: the content of /var/lib/dpkg/status.
        system: as `operating_system` takes it.
    """
    for paragraph in status.split("\n\n"):
        package = fields(paragraph, ":")
        if package.get("Status") != "install ok installed":
            continue
        name, version = package["Package"], package["Version"]
        # "util-linux (2.38.1-5)" where it has a version of its own, as with bsdutils 1:2.38.1-5
        source, _, source_version = package.get("Source", name).partition(" ")
        qualifiers = {
            "arch": package["Architecture"],
            "distro": f"{system['ID']}-{system['VERSION_ID']}",
            # Advisories are about versions of source packages: scanners look for this.
            "upstream": "@".join(filter(None, [source, source_version.strip("()")])),
        }
        purl = PackageURL("deb", system["ID"], name, version, qualifiers)
        yield {
            "type": "library",
            "bom-ref": f"deb:{name}:{package['Architecture']}={version}",
            "name": name,
            "version": version,
            "description": package["Description"],
            "purl": purl.to_string(),
        }


def operating_system(system: Mapping[str, str]) -> Component:
    """The distribution, from the fields of its os-release."""
    return {
        "type": "operating-system",
        "bom-ref": f"os:{system['ID']}",
        "name": system["ID"],
        "version": system["VERSION_ID"],
        "description": system["PRETTY_NAME"],
    }


def fields(text: str, separator: str) -> dict[str, str]:
    """Names and values of lines; a line that goes on with the one before is left out."""
    lines = (line.partition(separator) for line in text.splitlines() if line[:1].strip())
    return {name: value.strip().strip('"') for name, _, value in lines}


def unpack(tool: Sequence[str], image: str, folder: Path) -> None:
    """Writes those files of an image into a folder that tell what is installed."""
    created = [*tool, "create", image]
    container = subprocess.run(created, check=True, capture_output=True, text=True).stdout.strip()
    try:
        with (
            subprocess.Popen([*tool, "export", container], stdout=subprocess.PIPE) as exporting,
            tarfile.open(fileobj=exporting.stdout, mode="r|") as archive,
        ):
            for member in archive:
                if member.isfile() and _WANTED.fullmatch(member.name.removeprefix("./")):
                    archive.extract(member, folder, filter="data")
        if exporting.returncode != 0:
            raise subprocess.CalledProcessError(exporting.returncode, exporting.args)
    finally:
        subprocess.run([*tool, "rm", container], check=True, stdout=subprocess.DEVNULL)


def write_metadata(distributions: Iterable[Mapping[str, Any]], folder: Path) -> None:
    """Writes core metadata in its JSON form (PEP 566) as `.dist-info` folders."""
    for each in distributions:
        info = folder / f"{each['name'].replace('-', '_')}-{each['version']}.dist-info"
        info.mkdir(parents=True)
        lines = [
            f"{name.replace('_', '-').title()}: {' '.join(value.split())}"
            for name, given in each.items()
            if name != "description"
            for value in (given if isinstance(given, list) else [given])
        ]
        (info / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")


def written(bill: dict[str, Any], properties: Mapping[str, str]) -> str:
    """A bill as JSON, in one order and checked against the schema.

    Raises:
        ValueError: it is no valid bill.
    """
    bill["components"].sort(key=lambda component: cast(str, component["bom-ref"]).lower())
    told = bill["metadata"].setdefault("properties", [])
    told += [{"name": f"yolov8-fla:{name}", "value": value} for name, value in properties.items()]
    told.sort(key=lambda each: (each["name"], each["value"]))
    text = json.dumps(bill, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    error = JsonStrictValidator(SchemaVersion.from_version(SPEC)).validate_str(text)
    if error is not None:
        raise ValueError(f"not a valid bill of materials: {error}")
    return text
