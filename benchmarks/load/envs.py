"""Each peer's own virtual environment, made once and kept."""

import hashlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / "benchmarks" / "serving" / "peers"


def python_of(peer: str, envs: Path) -> Path:
    """The Python of a peer's environment; makes it where it is missing or out of date.

    Args:
        peer: `serving/peers/PEER.txt` says what it needs, `constraints.txt` in which versions.
        envs: the folder of all environments.

    Raises:
        CalledProcessError: venv or pip failed; both said why on stderr.
    """
    requirements, constraints = PEERS / f"{peer}.txt", ROOT / "constraints.txt"
    wanted = hashlib.sha256(requirements.read_bytes() + constraints.read_bytes()).hexdigest()
    env = envs.resolve() / peer
    python, made_for = env / "bin" / "python", env / "made-for"
    if made_for.exists() and made_for.read_text() == wanted:
        return python
    print(f"making {env}", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", env], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-c", str(constraints), "-r", str(requirements)], check=True)
    if peer == "tutorial":
        # ultralytics brings opencv-python, which shares its files with headless and needs libGL.
        headless = ["--force-reinstall", "--no-deps", "opencv-python-headless"]
        subprocess.run([*pip, "-c", str(constraints), *headless], check=True)
    made_for.write_text(wanted)
    return python
