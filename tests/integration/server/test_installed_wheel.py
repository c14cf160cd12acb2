"""The wheel in an environment of its own, away from this checkout, as its users have it.

Its requirements are this environment's; pip would take minutes and the network to put them in.
"""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import httpx
import pytest

from server.version import Build
from tests.support.processes import LIMIT_S, environment, following
from tests.support.serving import one_cell

pytestmark = pytest.mark.slow

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def python(repo_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that the wheel is installed in."""
    folder = tmp_path_factory.mktemp("installed")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
    for project in (repo_dir, repo_dir / "client"):
        subprocess.run(
            [*build, "--directory", str(folder)],
            cwd=project,
            env=os.environ | {"REVISION": REVISION},
            check=True,
            capture_output=True,
        )
    wheels = map(str, folder.glob("*.whl"))
    venv.create(folder / "venv", with_pip=False)
    made = folder / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(made), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", *wheels], check=True)
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    # A path in a .pth file: what is installed here comes first, and no .pth file there is read, so
    # that an editable install of this checkout has no say.
    (packages / "requirements.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return made


def run(python: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(python), "-m", *arguments],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )


@pytest.fixture(scope="module")
def build(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    command = "import importlib.metadata as m; print(m.version('yolov8-fla'))"
    done = subprocess.run([str(python), "-c", command], check=True, capture_output=True, text=True)
    return Build(done.stdout.strip(), REVISION)


def test_the_installed_server_tells_its_build_wherever_it_is_asked(
    python: Path, build: Build, artifact: Path, tmp_path: Path
) -> None:
    flags = ["--model", str(artifact), "--port", "0"]
    with following([str(python), "-m", "server", *flags], tmp_path, environment()) as server:
        first = server.wait_for("listening")
        assert (first["server_version"], first["revision"]) == (build.version, build.revision)
        server.wait_for("ready")
        with httpx.Client(base_url=first["url"], timeout=LIMIT_S) as client:
            health = client.get("/health").json()
            assert health["server_version"] == build.version
            assert health["revision"] == build.revision
            labels = f'revision="{build.revision}",version="{build.version}"'
            assert f"detector_build_info{{{labels}}} 1.0" in client.get("/metrics").text
            assert client.get("/").status_code == 200  # with the page that the wheel carries
        assert server.stop() == 0


@pytest.mark.parametrize("package", ["server", "export"])
def test_installed_commands_tell_their_build(
    python: Path, build: Build, tmp_path: Path, package: str
) -> None:
    assert run(python, tmp_path, package, "--version").stdout == f"{build}\n"


def test_the_installed_script_serves_and_runs_the_other_commands(
    python: Path, build: Build, artifact: Path, tmp_path: Path
) -> None:
    script = str(python.with_name("yolov8-fla"))
    flags = ["--model", str(artifact), "--port", "0"]
    with following([script, "serve", *flags], tmp_path, environment()) as server:
        server.wait_for("ready")
        assert server.stop() == 0
    expected = {
        ("--version",): (0, f"{build}\n"),
        ("serve", "--version"): (0, f"{build}\n"),
        ("inspect", str(artifact)): (0, "precision "),
        ("doctor", *flags): (0, f"commit {REVISION}"),
        ("doctor", "--port", "0"): (2, "no model is given"),
    }
    for arguments, (code, text) in expected.items():
        done = subprocess.run(
            [script, *arguments],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        assert done.returncode == code, done.stderr
        assert text in done.stdout


def test_the_installed_client_asks_the_installed_server(
    python: Path, build: Build, artifact: Path, tmp_path: Path
) -> None:
    (tmp_path / "cell.png").write_bytes(one_cell())
    flags = ["--model", str(artifact), "--port", "0"]
    with following([str(python), "-m", "server", *flags], tmp_path, environment()) as server:
        url = server.wait_for("listening")["url"]
        server.wait_for("ready")
        found = run(python, tmp_path, "yolov8_fla_client", "detect", "cell.png", "--url", url)
    assert found.returncode == 0, found.stderr
    (detection,) = json.loads(found.stdout)["detections"]
    assert detection["class_name"] == "RBC"
    script = str(python.with_name("yolov8-fla-client"))
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"yolov8-fla-client {build.version}\n"
    command = "import yolov8_fla_client as c; print(c.__file__)"
    where = subprocess.run([str(python), "-c", command], cwd=tmp_path, capture_output=True)
    folder = Path(where.stdout.decode().strip()).parent
    assert folder.is_relative_to(python.parents[1]), "not the checkout's"
    assert (folder / "py.typed").exists()


def test_without_weights_it_says_where_a_model_comes_from(python: Path, tmp_path: Path) -> None:
    ended = run(python, tmp_path, "server", "--port", "0")
    assert ended.returncode == 2
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("error: no model is given, and the installed package brings none")
    assert "--model FILE" in last
    report = run(python, tmp_path, "server", "doctor", "--port", "0")
    assert report.returncode == 2
    assert f"commit {REVISION}" in report.stdout
    assert "no model is given" in report.stdout
