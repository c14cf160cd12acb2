"""The image for CPUs at work: hardened as anyone should run it."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.container_engine import LIMIT_S, Container, Engine, ended, ready, started
from tests.support.artifacts import CELL, tiny_artifact
from tests.support.serving import one_cell

EXIT_DEPLOYMENT = 2
MODELS = "/models"


@pytest.fixture(scope="module")
def running(engine: Engine, cpu_image: str) -> Iterator[tuple[Container, httpx.Client]]:
    with ready(engine, cpu_image) as both:
        yield both


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder that the container's user may read."""
    folder = tmp_path / "models"
    folder.mkdir()
    folder.chmod(0o755)
    return folder


def publish(artifact: Path) -> Path:
    artifact.chmod(0o644)
    return artifact


def mounted(models: Path, model: str) -> tuple[str, ...]:
    return f"--volume={models}:{MODELS}:ro", f"--env=YOLO_FLA_MODEL={MODELS}/{model}"


def overlap(one: dict[str, float], other: list[float]) -> float:
    """Intersection over union of a box of an answer and one of samples/smears.json."""
    left, top = max(one["x1"], other[0]), max(one["y1"], other[1])
    right, bottom = min(one["x2"], other[2]), min(one["y2"], other[3])
    both = max(0.0, right - left) * max(0.0, bottom - top)
    areas = (one["x2"] - one["x1"]) * (one["y2"] - one["y1"])
    areas += (other[2] - other[0]) * (other[3] - other[1])
    return both / (areas - both)


def assert_finds_the_cells(client: httpx.Client, repo_dir: Path, name: str = "smear_1.jpg") -> None:
    cells = json.loads((repo_dir / "samples" / "smears.json").read_text())[name]["cells"]
    image = (repo_dir / "samples" / name).read_bytes()
    answer = client.post("/detect", content=image, headers={"content-type": "image/jpeg"})
    assert answer.status_code == 200, answer.text
    (result,) = answer.json()["results"]
    found = [(each["class_name"], each["box"]) for each in result["detections"]]
    missed = [
        cell
        for cell in cells
        if not any(
            name == cell["class_name"] and overlap(box, cell["box"]) > 0.5 for name, box in found
        )
    ]
    assert len(missed) <= len(cells) // 20, missed
    assert len(found) <= len(cells) + 2


def test_it_finds_the_cells_of_a_image(
    running: tuple[Container, httpx.Client], repo_dir: Path
) -> None:
    assert_finds_the_cells(running[1], repo_dir)


def test_it_tells_what_it_serves_and_what_it_was_built_from(
    running: tuple[Container, httpx.Client],
) -> None:
    health = running[1].get("/health").json()
    assert health["provider"] == "CPUExecutionProvider"
    assert health["revision"] == "a-revision"
    assert health["model"] == "yolov8n-fla-bccd"


def test_its_health_check_passes(
    running: tuple[Container, httpx.Client], engine: Engine, cpu_image: str
) -> None:
    checked = running[0].execute(*engine.health_check(cpu_image))
    assert checked.returncode == 0, checked.stderr


def test_it_runs_as_nobody_with_no_rights(running: tuple[Container, httpx.Client]) -> None:
    status = running[0].execute("cat", "/proc/1/status").stdout
    proc = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert proc["Uid"].split() == ["10001"] * 4
    assert proc["Gid"].split() == ["10001"] * 4
    assert {name: int(proc[name], 16) for name in proc if name.startswith("Cap")} == dict.fromkeys(
        ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), 0
    )
    assert proc["NoNewPrivs"] == "1"


def test_it_can_write_nowhere(running: tuple[Container, httpx.Client]) -> None:
    folders = ("/", "/app", "/app/weights", "/opt/venv", "/tmp", "/var/tmp", "/run", "/home")
    written = [each for each in folders if running[0].execute("touch", f"{each}/x").returncode == 0]
    assert written == []


def test_it_logs_nothing_but_json(running: tuple[Container, httpx.Client]) -> None:
    lines = running[0].logs().splitlines()
    assert lines
    assert [line for line in lines if not line.startswith("{")] == []


def test_the_health_check_looks_where_flags_say_that_the_server_is(
    engine: Engine, cpu_image: str
) -> None:
    flags = ("--port=8123", "--host", "127.0.0.1")
    with started(engine, cpu_image, command=flags) as container:
        check = engine.health_check(cpu_image)
        # The server has to be there first, and can't be asked from outside.
        assert until(lambda: bool(container.events("ready")))
        checked = container.execute(*check)
        assert checked.returncode == 0, checked.stderr
        wrong = container.execute("env", "YOLO_FLA_PORT=1", *check)
        assert wrong.returncode == 0, "the flag is stronger than the environment"


def test_the_health_check_fails_where_nobody_is_ready(engine: Engine, cpu_image: str) -> None:
    program, *arguments = engine.health_check(cpu_image)
    checked = engine.run("run", "--rm", f"--entrypoint={program}", cpu_image, *arguments)
    assert checked.returncode == 1
    assert "not ready at 127.0.0.1:8000: " in checked.stderr


def encoded(
    extension: str,
    hw: tuple[int, int],
    dtype: type = np.uint8,
    channels: int = 3,
    progressive: bool = False,
) -> bytes:
    """A smooth image: few bytes, all pixels different from their neighbours' rows."""
    rows: NDArray[Any] = np.linspace(0, np.iinfo(dtype).max, hw[0]).astype(dtype)
    image = np.broadcast_to(rows[:, None, None], (*hw, channels))
    flags = {
        ".png": [cv2.IMWRITE_PNG_COMPRESSION, 1],
        ".jpg": [cv2.IMWRITE_JPEG_PROGRESSIVE, int(progressive)],
        ".tiff": [cv2.IMWRITE_TIFF_COMPRESSION, 8],
    }.get(extension, [])
    return cv2.imencode(extension, np.ascontiguousarray(image), flags)[1].tobytes()


def test_large_images_of_many_clients_do_not_end_it(
    engine: Engine, cpu_image: str, repo_dir: Path
) -> None:
    side = (6000, 8000)  # 48 million pixels, just under the limit
    images = [
        encoded(".jpg", side),
        encoded(".png", side),
        encoded(".png", side, channels=4),
        encoded(".png", side, np.uint16),
        encoded(".png", side, np.uint16, channels=4),
        encoded(".webp", (4000, 4000)),
        encoded(".jpg", side, progressive=True),
        encoded(".tiff", side, np.uint16, channels=4),
        *(path.read_bytes() for path in sorted((repo_dir / "samples").glob("*.jpg"))),
    ]
    with ready(engine, cpu_image) as (container, client):

        def one_client(first: int) -> list[int]:
            order = images[first:] + images[:first]
            return [client.post("/detect", content=each).status_code for each in order]

        with ThreadPoolExecutor(8) as clients:
            statuses = [status for each in clients.map(one_client, range(8)) for status in each]
        state = container.state()
        assert state["Running"], (state, container.logs()[-2000:])
        assert not state["OOMKilled"]
        assert 200 in statuses
        # What does not fit is refused or late, and never an error of the server's own.
        assert set(statuses) <= {200, 413, 503, 504}, statuses
        assert_finds_the_cells(client, repo_dir)


def test_a_request_under_way_at_sigterm_is_answered(
    engine: Engine, cpu_image: str, repo_dir: Path
) -> None:
    image = (repo_dir / "samples" / "smear_1.jpg").read_bytes()
    files = [("image", (f"{index}.jpg", image)) for index in range(64)]
    with ready(engine, cpu_image) as (container, client):
        answers: list[httpx.Response] = []
        asking = threading.Thread(
            target=lambda: answers.append(client.post("/detect", files=files))
        )
        asking.start()
        with httpx.Client(base_url=client.base_url) as other:
            assert until(lambda: bool(answers) or other.get("/health").json()["queue_images"] > 0)
        assert not answers, "the model was too fast to be caught running"
        container.signal("TERM")
        asking.join(LIMIT_S)
        assert [answer.status_code for answer in answers] == [200]
        assert [len(answer.json()["results"]) for answer in answers] == [64]
        assert container.wait() == 0


def test_an_artifact_of_ones_own_is_served_from_a_mounted_folder(
    engine: Engine, cpu_image: str, models: Path
) -> None:
    publish(tiny_artifact(models / "mine.onnx"))
    with ready(engine, cpu_image, *mounted(models, "mine.onnx")) as (_, client):
        (result,) = client.post("/detect", content=one_cell()).json()["results"]
        assert [each["class_name"] for each in result["detections"]] == ["RBC"]


def test_a_mounted_model_is_changed_without_a_restart(
    engine: Engine, cpu_image: str, models: Path, tmp_path: Path
) -> None:
    publish(tiny_artifact(models / "mine.onnx"))
    with ready(engine, cpu_image, *mounted(models, "")) as (container, client):
        before = client.get("/health").json()["version"]
        side = 2 * CELL
        other = tiny_artifact(
            tmp_path / "other.onnx", input_hw=(side, side), buckets=[(side, side)]
        )
        publish(other).rename(models / "mine.onnx")
        container.signal("HUP")
        assert until(lambda: client.get("/health").json()["version"] != before)
        assert client.post("/detect", content=one_cell()).status_code == 200
        # A bad one is refused, and the good one goes on.
        now = client.get("/health").json()["version"]
        (tmp_path / "bad.onnx").write_bytes(b"no model")
        publish(tmp_path / "bad.onnx").rename(models / "mine.onnx")
        container.signal("HUP")
        assert until(lambda: 'reloads_total{outcome="failed"} 1.0' in client.get("/metrics").text)
        assert client.get("/health").json()["version"] == now


def test_a_gpu_that_is_asked_for_is_refused_with_what_is_missing(
    engine: Engine, cpu_image: str
) -> None:
    run = ended(engine, cpu_image, "--env=YOLO_FLA_DEVICE=cuda")
    assert_refused(run, "built without CUDAExecutionProvider: .* the image for GPUs")


def test_it_runs_as_whoever_the_platform_makes_it(
    engine: Engine, cpu_image: str, repo_dir: Path
) -> None:
    """OpenShift gives every project a user of its own, in the group 0, that no file knows."""
    with ready(engine, cpu_image, "--user=1000620000:0") as (container, client):
        assert_finds_the_cells(client, repo_dir)
        assert container.execute(*engine.health_check(cpu_image)).returncode == 0


def test_its_health_check_needs_no_key_and_no_proxy(engine: Engine, cpu_image: str) -> None:
    proxies = [f"--env={name}=http://127.0.0.1:9" for name in ("http_proxy", "HTTPS_PROXY")]
    with ready(engine, cpu_image, "--env=YOLO_FLA_API_KEYS=a-key", *proxies) as (container, _):
        checked = container.execute(*engine.health_check(cpu_image))
        assert checked.returncode == 0, checked.stderr


def test_the_doctor_works_inside(engine: Engine, cpu_image: str) -> None:
    proc = ended(engine, cpu_image, command=["doctor"])
    assert proc.returncode == 0, proc.stdout
    assert "The server would start" in proc.stdout


def until(condition: Callable[[], bool]) -> bool:
    """Whether something comes true in time; a container gives no event."""
    event = threading.Event()
    for _ in range(20 * LIMIT_S):
        if condition():
            return True
        event.wait(0.05)
    return False


def assert_refused(run: Any, why: str) -> None:
    assert run.returncode == EXIT_DEPLOYMENT, run.stderr
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("error: "), run.stderr
    assert re.search(why, last), last
