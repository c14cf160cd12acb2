"""The examples, run as a reader runs them, against a real server."""

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import httpx
import numpy as np
import pytest

from examples import webcam
from tests.support.artifacts import paint, tiny_artifact
from tests.support.processes import ready
from tests.support.serving import RED, encode, one_cell

pytestmark = pytest.mark.slow
LIMIT_S = 60
NOTHING_FOUND = {
    "model": {"name": "stub", "version": "0" * 12},
    "results": [{"filename": None, "width": 64, "height": 64, "truncated": False, "error": None,
                 "detections": []}],
    "timings_ms": {"decode": 1, "queue": 0, "inference": 1, "postprocess": 0, "total": 2},
}  # fmt: skip


@pytest.fixture(scope="module")
def url(repo_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    artifact = tiny_artifact(tmp_path_factory.mktemp("model") / "tiny.onnx")
    with ready(repo_dir, artifact) as (_, client):
        yield str(client.base_url)


def run(repo: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=repo, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )


def frames_of(path: Path) -> int:
    capture, count = cv2.VideoCapture(str(path)), 0
    while capture.read()[0]:
        count += 1
    capture.release()
    return count


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """20 frames of 64 x 64 with one red cell in each."""
    path = tmp_path / "in.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, (64, 64))
    frame = cv2.cvtColor(paint((64, 64), {(0, 1): RED}), cv2.COLOR_RGB2BGR)
    for _ in range(20):
        writer.write(frame)
    writer.release()
    return path


def test_every_frame_of_a_video_is_detected_and_written(
    repo_dir: Path, url: str, video: Path, tmp_path: Path
) -> None:
    written = tmp_path / "out.avi"
    done = run(
        repo_dir, "examples/webcam.py", str(video), "--url", url, "--every-frame",
        "--output", str(written),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "20 frames came, 20 were detected, 0 refusals, 20 objects" in done.stdout
    assert frames_of(written) == 20


def test_a_stream_is_followed_to_its_end(repo_dir: Path, url: str, video: Path) -> None:
    done = run(repo_dir, "examples/webcam.py", str(video), "--url", url)
    assert done.returncode == 0, done.stderr
    assert "0 refusals" in done.stdout


class Stub(BaseHTTPRequestHandler):
    """Finds nothing in each frame; the test says what comes before."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        assert isinstance(self.server, StubServer)
        self.server.asked += 1
        status, headers = self.server.before_answer(self.server.asked)
        body = json.dumps(NOTHING_FOUND).encode() if status == 200 else b""
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        """A camera's stream of three images, which then ends."""
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        image = cv2.imencode(".jpg", np.zeros((64, 64, 3), np.uint8))[1].tobytes()
        for _ in range(3):
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(image)}\r\n\r\n"
            self.wfile.write(head.encode() + image + b"\r\n")

    def log_message(self, *_: object) -> None:
        pass


class StubServer(ThreadingHTTPServer):
    """Counts what it is asked, and asks the test what to answer: a status and headers."""

    def __init__(self, before_answer: Callable[[int], tuple[int, dict[str, str]]]) -> None:
        super().__init__(("127.0.0.1", 0), Stub)
        self.asked = 0
        self.before_answer = before_answer

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def stub(before_answer: Callable[[int], tuple[int, dict[str, str]]]) -> Iterator[StubServer]:
    with StubServer(before_answer) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        try:
            yield server
        finally:
            server.shutdown()
            serving.join()


def test_while_the_server_is_full_frames_are_dropped_and_the_videos_time_runs_true(
    video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def full_until_all_were_read(asked: int) -> tuple[int, dict[str, str]]:
        if asked > 1:
            return 200, {}
        for thread in threading.enumerate():
            if thread.name == webcam.READER:
                thread.join(LIMIT_S)
        return 503, {"Retry-After": "0"}

    written = tmp_path / "out.avi"
    with stub(full_until_all_were_read) as server:
        done = webcam.main([str(video), "--url", server.url, "--output", str(written)])
    assert done == 0
    assert "20 frames came, 1 were detected, 1 refusals" in capsys.readouterr().out
    assert server.asked == 2
    assert frames_of(written) == 20


def test_a_stream_that_ends_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = tmp_path / "out.avi"
    with stub(lambda asked: (200, {})) as server:
        source = f"{server.url}/stream"
        done = webcam.main([source, "--url", server.url, "--output", str(written)])
    assert done == 1
    assert f"{source} is over" in capsys.readouterr().err
    assert frames_of(written) >= 1


def test_a_server_that_is_not_there_is_told_at_once(
    video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with stub(lambda asked: (200, {})) as server:
        away = server.url
    assert webcam.main([str(video), "--url", away, "--output", str(tmp_path / "out.avi")]) == 2
    assert away in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in.avi"]


def test_a_server_that_goes_for_good_ends_it_and_the_video_is_whole(
    video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = tmp_path / "out.avi"
    with stub(lambda asked: (200 if asked < 6 else 503, {})) as server:
        done = webcam.main([
            str(video), "--url", server.url, "--every-frame", "--output", str(written),
            "--patience", "0",
        ])  # fmt: skip
    assert done == 2
    assert "503" in capsys.readouterr().err
    assert frames_of(written) == 5


def test_frames_that_the_server_does_not_take_are_told(
    video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with stub(lambda _: (413, {})) as server:
        assert webcam.main([str(video), "--url", server.url]) == 2
    # The status is named otherwise since Python 3.13.
    assert re.search("frame was refused: .*_too_large", capsys.readouterr().err)
    assert server.asked == 1


def test_a_wrong_key_is_told(
    repo_dir: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = tiny_artifact(tmp_path / "tiny.onnx")
    with ready(repo_dir, artifact, YOLO_FLA_API_KEYS="0123456789abcdef") as (_, client):
        url = str(client.base_url)
        assert webcam.main([str(video), "--url", url, "--api-key", "wrong"]) == 2
        assert "key" in capsys.readouterr().err
        assert webcam.main([str(video), "--url", url, "--api-key", "0123456789abcdef"]) == 0
        told = run(
            repo_dir, "examples/label_studio.py", str(tmp_path), "--url", url, "--prefix", "/",
            "-o", str(tmp_path / "tasks.json"),
        )  # fmt: skip
    assert told.returncode == 2
    assert "nothing was written" in told.stderr
    assert not (tmp_path / "tasks.json").exists()


def test_ctrl_c_ends_the_loop_and_the_video_is_whole(
    repo_dir: Path, video: Path, tmp_path: Path
) -> None:
    written, asked_twice = tmp_path / "out.avi", threading.Event()

    def hold_the_second(asked: int) -> tuple[int, dict[str, str]]:
        if asked == 2:
            asked_twice.set()
            interrupted.wait(LIMIT_S)
        return 200, {}

    interrupted = threading.Event()
    with stub(hold_the_second) as server:
        command = [
            sys.executable, "examples/webcam.py", str(video), "--url", server.url, "--every-frame",
            "--output", str(written),
        ]  # fmt: skip
        with subprocess.Popen(command, cwd=repo_dir, stdout=subprocess.PIPE, text=True) as process:
            assert asked_twice.wait(LIMIT_S)
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=LIMIT_S)
        interrupted.set()
    assert process.returncode == 0
    assert "1 frames came, 1 were detected" in out
    assert frames_of(written) == 1


def test_a_source_that_is_not_there_is_told(repo_dir: Path, url: str, tmp_path: Path) -> None:
    done = run(repo_dir, "examples/webcam.py", str(tmp_path / "none.avi"), "--url", url)
    assert done.returncode == 2
    assert "can't be opened" in done.stderr


def pre_labelled(repo: Path, url: str, folder: Path) -> tuple[int, str, list[dict[str, Any]]]:
    """Exit code, messages and tasks of a folder."""
    written = folder.parent / f"{folder.name}.json"
    done = run(
        repo, "examples/label_studio.py", str(folder), "--url", url, "--prefix", "/f/?d=",
        "-o", str(written),
    )  # fmt: skip
    return done.returncode, done.stderr, json.loads(written.read_text(encoding="utf-8"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "images"
    made.mkdir()
    return made


def test_label_studio_gets_percent_of_the_image(repo_dir: Path, url: str, folder: Path) -> None:
    (folder / "a b.png").write_bytes(one_cell())
    (folder / "empty.png").write_bytes(encode(np.zeros((64, 64, 3), np.uint8)))
    code, messages, (first, second) = pre_labelled(repo_dir, url, folder)
    assert code == 0, messages
    assert first["data"] == {"image": "/f/?d=a%20b.png"}
    (result,) = first["predictions"][0]["result"]
    assert result["value"] == {
        "x": 50, "y": 0, "width": 50, "height": 50, "rotation": 0, "rectanglelabels": ["RBC"],
    }  # fmt: skip
    assert (result["original_width"], result["original_height"]) == (64, 64)
    assert second["predictions"][0]["result"] == []


def test_the_pages_labelling_interface_has_the_names_that_tasks_refer_to(
    repo_dir: Path, url: str, folder: Path
) -> None:
    (folder / "a.png").write_bytes(one_cell())
    _, _, (task,) = pre_labelled(repo_dir, url, folder)
    (result,) = task["predictions"][0]["result"]
    page = (repo_dir / "docs" / "examples.md").read_text(encoding="utf-8")
    view = ElementTree.fromstring(re.findall(r"```xml\n(.+?)```", page, re.DOTALL)[0])
    image, labels = view.find("Image"), view.find("RectangleLabels")
    assert image is not None
    assert labels is not None
    assert image.get("value") == "$" + next(iter(task["data"]))
    assert image.get("name") == labels.get("toName") == result["to_name"]
    assert labels.get("name") == result["from_name"]
    assert result["value"]["rectanglelabels"][0] in [each.get("value") for each in labels]


def test_a_image_that_cannot_be_read_is_told_and_the_others_done(
    repo_dir: Path, url: str, folder: Path
) -> None:
    (folder / "a.png").write_bytes(b"no image")
    (folder / "b.png").write_bytes(one_cell())
    code, messages, tasks = pre_labelled(repo_dir, url, folder)
    assert code == 1
    assert "a.png" in messages
    assert [task["data"]["image"] for task in tasks] == ["/f/?d=b.png"]


def test_the_call_of_camera_software_is_answered_as_home_assistant_reads_it(url: str) -> None:
    # As deepstack-python posts it: no type, the key empty where there is none, always 0.1.
    answer = httpx.post(
        f"{url.rstrip('/')}/v1/vision/detection",
        files={"image": ("image", one_cell())},
        data={"min_confidence": "0.1", "api_key": ""},
    )
    assert answer.status_code == 200
    (prediction,) = answer.json()["predictions"]
    assert prediction["label"] == "RBC"
    assert prediction["confidence"] > 0.5
    assert {prediction[edge] for edge in ("x_min", "y_min", "x_max", "y_max")} == {0, 32, 64}


def test_the_pages_home_assistant_settings_are_those_of_the_component(repo_dir: Path) -> None:
    # PLATFORM_SCHEMA and TARGETS_SCHEMA of HASS-Deepstack-object, and Home Assistant's own.
    known = {"platform", "ip_address", "port", "api_key", "timeout", "confidence", "targets"}
    known |= {"target", "source", "entity_id"}
    page = (repo_dir / "docs" / "examples.md").read_text(encoding="utf-8")
    shown = re.findall(r"```yaml\n(.+?)```", page, re.DOTALL)[0]
    named = set(re.findall(r"^[ #-]*(\w+):", shown, re.MULTILINE)) - {"image_processing"}
    assert {"ip_address", "port", "targets", "source"} <= named <= known
