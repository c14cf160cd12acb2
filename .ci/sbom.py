"""Bills of materials (CycloneDX as JSON): what an image holds, and what an extra brings along.

cyclonedx-py lists Python's distributions. Added is what it does not read: the libraries that wheels
say they bundle (PEP 770), the hashes of an extra's files, and an image's Debian packages.
"""

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import PathDistribution
from pathlib import Path
from typing import Any

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
from packaging.utils import canonicalize_name

REPO = Path(__file__).resolve().parents[1]
METADATA = "cd /opt/venv/lib/python3*/site-packages && tar -c *.dist-info"
PACKAGES = r"""
. /etc/os-release && printf '%s\t%s\n' "$ID" "$VERSION_ID" &&
dpkg-query -W -f '${db:Status-Status}\t${Package}\t${Version}\t${Architecture}\t'\
'${source:Package}@${source:Version}\n'
"""


def of_image(tool: Sequence[str], image: str) -> str:
    """The bill of an image, as JSON.

    Args:
        tool: a command that is used like docker.
        image: its name.

    Raises:
        subprocess.CalledProcessError: the tool has no such image, or it is not one of ours.
    """
    run = [*tool, "run", "--rm", "--network=none", "--read-only", "--entrypoint=sh", image, "-c"]
    metadata, packages = (
        subprocess.run([*run, script], check=True, stdout=subprocess.PIPE).stdout
        for script in (METADATA, PACKAGES)
    )
    with tempfile.TemporaryDirectory() as name:
        with tarfile.open(fileobj=io.BytesIO(metadata)) as archive:
            archive.extractall(name, filter="data")
        bill = of_distributions(Path(name))
    bill["components"] += debian(packages.decode())
    return checked(bill)


def of_requirement(requirement: str, constraints: Path) -> str:
    """The bill of what pip would install for a wheel, such as `x.whl[extra]`, on this platform.

    Returns:
        JSON; a distribution has the SHA-256 of the file that pip would take, where it is told.

    Raises:
        subprocess.CalledProcessError: pip finds no such versions.
    """
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    # fast-deps reads the metadata out of a remote wheel, where the index allows it
    pip += ["--dry-run", "--ignore-installed", "--use-feature=fast-deps", "--report=-"]
    pip += ["-c", str(constraints), requirement]
    report = subprocess.run(pip, check=True, stdout=subprocess.PIPE, timeout=1800).stdout
    hashes: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as name:
        for item in json.loads(report)["install"]:
            metadata, origin = item["metadata"], item["download_info"]
            write_metadata(metadata, Path(name))
            hashes[canonicalize_name(metadata["name"])] = origin["archive_info"].get("hashes", {})
        bill = of_distributions(Path(name))
    for component in bill["components"]:
        if sha256 := hashes[canonicalize_name(component["name"])].get("sha256"):
            component["hashes"] = [{"alg": "SHA-256", "content": sha256}]
    return checked(bill)


def of_distributions(folder: Path) -> dict[str, Any]:
    """The bill of the distributions whose `.dist-info` lies in a folder."""
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible"]
    command += ["--pyproject", str(REPO / "pyproject.toml"), "--mc-type", "application"]
    # -S keeps this environment's own distributions out, and PYTHONPATH puts that folder in.
    done = subprocess.run(
        [*command, "-S", sys.executable],
        env=os.environ | {"PYTHONPATH": str(folder)},
        check=True,
        stdout=subprocess.PIPE,
        timeout=600,
    )
    bill: dict[str, Any] = json.loads(done.stdout)
    components = {canonicalize_name(each["name"]): each for each in bill["components"]}
    for info in folder.glob("*.dist-info"):
        component = components.get(canonicalize_name(PathDistribution(info).metadata["Name"]))
        if component and (inside := list(bundled(info, component["bom-ref"]))):
            component["components"] = inside
    return bill


def bundled(dist_info: Path, owner: str) -> Iterator[dict[str, Any]]:
    """What a distribution says that its files bundle (PEP 770), each once.

    Args:
        dist_info: its folder of metadata; bills in another form than CycloneDX are passed over.
        owner: its reference, to which those of the bundled are added.
    """
    itself, seen = canonicalize_name(PathDistribution(dist_info).metadata["Name"]), set()
    for file in sorted(dist_info.glob("sboms/*.json")):
        bill = json.loads(file.read_bytes())
        for each in bill.get("components", ()) if bill.get("bomFormat") == "CycloneDX" else ():
            kept = {key: each[key] for key in ("name", "version", "purl") if each.get(key)}
            key = tuple(kept.items())
            if canonicalize_name(each["name"]) != itself and key not in seen:
                seen.add(key)
                yield {"type": "library", "bom-ref": f"{owner}#{len(seen)}", **kept}


def debian(listing: str) -> Iterator[dict[str, Any]]:
    """The operating system and its packages, from what the script `PACKAGES` prints."""
    (system, release), *packages = (line.split("\t") for line in listing.splitlines())
    yield {
        "type": "operating-system",
        "bom-ref": f"os:{system}",
        "name": system,
        "version": release,
    }
    for state, name, version, arch, source in packages:
        if state != "installed":  # removed, but for its settings
            continue
        # Advisories are about versions of source packages: scanners look for `upstream`.
        about = {"arch": arch, "distro": f"{system}-{release}", "upstream": source}
        yield {
            "type": "library",
            "bom-ref": f"deb:{name}:{arch}={version}",
            "name": name,
            "version": version,
            "purl": PackageURL("deb", system, name, version, about).to_string(),
        }


def write_metadata(metadata: dict[str, Any], folder: Path) -> None:
    """Writes a distribution's metadata, as pip reports it (PEP 566), as a `.dist-info` folder."""
    info = folder / f"{metadata['name'].replace('-', '_')}-{metadata['version']}.dist-info"
    info.mkdir()
    lines = [
        f"{name.replace('_', '-').title()}: {' '.join(value.split())}"
        for name, given in metadata.items()
        if name != "description"
        for value in (given if isinstance(given, list) else [given])
    ]
    (info / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")


def checked(bill: dict[str, Any]) -> str:
    """A bill as JSON; raises `ValueError` where a wheel's own bill made it invalid."""
    text = json.dumps(bill, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    version = SchemaVersion.from_version(bill["specVersion"])
    if error := JsonStrictValidator(version).validate_str(text):
        raise ValueError(f"not a valid bill of materials: {error}")
    return text
