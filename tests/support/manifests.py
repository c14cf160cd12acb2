"""What kustomize makes of a folder of `deploy/kubernetes`, and the parts that tests look at."""

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

Manifest = dict[str, Any]

FOLDER = Path(__file__).resolve().parents[2] / "deploy/kubernetes"
# Kubernetes' units of quantities that we use.
UNITS = {
    "m": Fraction(1, 1000),
    "Ki": Fraction(2**10),
    "Mi": Fraction(2**20),
    "Gi": Fraction(2**30),
}


def build(folder: Path) -> list[Manifest]:
    """The objects of a folder; skips the test where no program can build them."""
    command = kustomize()
    if command is None:
        pytest.skip("needs kubectl (1.22 or newer) or kustomize on the PATH")
    built = subprocess.run(
        [*command, str(folder)], capture_output=True, text=True, timeout=60, check=False
    )
    assert built.returncode == 0, built.stderr
    assert not built.stderr, built.stderr  # a field that is going to be dropped is told there
    return list(yaml.safe_load_all(built.stdout))


@cache
def built(folder: str) -> list[Manifest]:
    """The objects of one of our own folders; not to be changed."""
    return build(FOLDER / folder)


def kustomize() -> list[str] | None:
    """The command that builds a folder; Debian's kubectl 1.20 knows no components."""
    if shutil.which("kustomize"):
        return ["kustomize", "build"]
    if not shutil.which("kubectl"):
        return None
    version = subprocess.run(
        ["kubectl", "version", "--client", "--output=json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    minor = yaml.safe_load(version.stdout)["clientVersion"]["minor"]
    return ["kubectl", "kustomize"] if int(minor.rstrip("+")) >= 22 else None


def one(manifests: list[Manifest], kind: str) -> Manifest:
    """The only object of a kind."""
    (found,) = [manifest for manifest in manifests if manifest["kind"] == kind]
    return found


def pod_spec(manifest: Manifest) -> Manifest:
    """The pod that an object makes; of KServe's, what stands in them."""
    match manifest["kind"]:
        case "Deployment":
            spec = manifest["spec"]["template"]["spec"]
        case "InferenceService":
            spec = manifest["spec"]["predictor"]
        case _:
            spec = manifest["spec"]
    assert isinstance(spec, dict)
    return spec


def server(manifest: Manifest) -> Manifest:
    """The container of the server."""
    names = ("detector", "kserve-container")
    (container,) = [each for each in pod_spec(manifest)["containers"] if each["name"] in names]
    assert isinstance(container, dict)
    return container


def variables(container: Mapping[str, Any]) -> dict[str, str]:
    """The container's environment."""
    given = {each["name"]: each["value"] for each in container["env"]}
    assert len(given) == len(container["env"]), "a variable is given twice"
    return given


def quantity(text: str) -> Fraction:
    """A number as Kubernetes writes it."""
    for unit, factor in UNITS.items():
        if text.endswith(unit):
            return Fraction(text.removesuffix(unit)) * factor
    return Fraction(text)


def probes(container: Mapping[str, Any]) -> Iterator[tuple[str, Manifest]]:
    """The container's probes by name."""
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        yield name, container[name]


def adapter_rules() -> list[Manifest]:
    """What prometheus-adapter is told to make out of the server's metrics."""
    values = yaml.safe_load((FOLDER / "prometheus-adapter/values.yaml").read_text())
    rules: list[Manifest] = values["rules"]["custom"]
    return rules
