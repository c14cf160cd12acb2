"""Writes constraints.txt anew with the newest versions that fit together: `make pins`."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
CONSTRAINTS = REPO / "constraints.txt"


def resolve(extra: str, pins: dict[str, str]) -> dict[str, str]:
    """Asks pip what it would install for work with one build of ONNX Runtime, given some pins."""
    with tempfile.TemporaryDirectory() as folder:
        given, report = Path(folder) / "given.txt", Path(folder) / "report.json"
        given.write_text(listing(pins))
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        # fast-deps reads the metadata out of a remote wheel, where the index allows it
        pip += ["--use-feature=fast-deps", "--report", str(report), "--constraint", str(given)]
        subprocess.run(
            [*pip, "pip", f".[{extra},export,otel,ray]", "--group", "dev", "--group", "release"],
            cwd=REPO,
            check=True,
            timeout=1800,
        )
        planned = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    names = {each["name"].lower().replace("_", "-").replace(".", "-"): each for each in planned}
    return {name: each["version"] for name, each in names.items() if name != "yolov8-fla"}


def listing(pins: dict[str, str]) -> str:
    """One `name==version` a line."""
    return "".join(f"{name}=={version}\n" for name, version in sorted(pins.items()))


if __name__ == "__main__":
    heading = [line for line in CONSTRAINTS.read_text().splitlines() if line.startswith("#")]
    pins = resolve("cpu", {})
    pins |= resolve("gpu", pins)  # the CUDA libraries that torch pins serve ONNX Runtime too
    CONSTRAINTS.write_text("\n".join(heading) + "\n" + listing(pins))
