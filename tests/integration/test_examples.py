"""The examples, run as a reader runs them, against a real server."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest

from tests.artifacts import paint, tiny_artifact
from tests.processes import ready
from tests.serving import RED, encode, one_cell

pytestmark = pytest.mark.slow
LIMIT_S = 60


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


class FullAtFirst(BaseHTTPRequestHandler):
    """Has no room for the first request; then finds nothing in each frame."""

    asked = 0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        FullAtFirst.asked += 1
        full = FullAtFirst.asked == 1
        body = b"" if full else json.dumps({"results": [{"detections": []}]}).encode()
        self.send_response(503 if full else 200)
        if full:
            self.send_header("Retry-After", "1")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_while_the_server_is_full_frames_are_dropped_and_the_videos_time_runs_true(
    repo_dir: Path, video: Path, tmp_path: Path
) -> None:
    written = tmp_path / "out.avi"
    FullAtFirst.asked = 0
    with HTTPServer(("127.0.0.1", 0), FullAtFirst) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        url = f"http://127.0.0.1:{server.server_port}"
        # 0.8 s long: over before the server has room, but for the frame that was the last.
        done = run(
            repo_dir, "examples/webcam.py", str(video), "--url", url, "--output", str(written)
        )
        server.shutdown()
        serving.join()
    assert done.returncode == 0, done.stderr
    assert "20 frames came" in done.stdout
    assert "1 refusals" in done.stdout
    assert FullAtFirst.asked < 20
    assert frames_of(written) == 20


def test_a_source_that_is_not_there_is_told(repo_dir: Path, url: str, tmp_path: Path) -> None:
    done = run(repo_dir, "examples/webcam.py", str(tmp_path / "none.avi"), "--url", url)
    assert done.returncode == 1
    assert "can't be opened" in done.stderr


def test_label_studio_gets_percent_of_the_picture(repo_dir: Path, url: str, tmp_path: Path) -> None:
    (tmp_path / "a b.png").write_bytes(one_cell())
    (tmp_path / "empty.png").write_bytes(encode(np.zeros((64, 64, 3), np.uint8)))
    done = run(
        repo_dir, "examples/label_studio.py", str(tmp_path), "--url", url, "--prefix", "/f/?d="
    )
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout)
    assert first["data"] == {"image": "/f/?d=a%20b.png"}
    (result,) = first["predictions"][0]["result"]
    assert result["value"] == {
        "x": 50, "y": 0, "width": 50, "height": 50, "rotation": 0, "rectanglelabels": ["RBC"],
    }  # fmt: skip
    assert (result["original_width"], result["original_height"]) == (64, 64)
    assert second["predictions"][0]["result"] == []


def test_a_picture_that_cannot_be_read_is_told_and_the_others_done(
    repo_dir: Path, url: str, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    (tmp_path / "b.png").write_bytes(one_cell())
    done = run(repo_dir, "examples/label_studio.py", str(tmp_path), "--url", url, "--prefix", "/")
    assert done.returncode == 1
    assert "a.png" in done.stderr
    assert len(json.loads(done.stdout)) == 1


def test_the_call_of_camera_software_is_answered_as_home_assistant_reads_it(url: str) -> None:
    answer = httpx.post(
        f"{url}v1/vision/detection" if url.endswith("/") else f"{url}/v1/vision/detection",
        files={"image": ("image.jpg", one_cell(), "image/jpeg")},
        data={"min_confidence": "0.5", "api_key": ""},
    )
    assert answer.json()["success"] is True
    (prediction,) = answer.json()["predictions"]
    assert prediction["label"] == "RBC"
    assert prediction["confidence"] > 0.5
    assert {prediction[edge] for edge in ("x_min", "y_min", "x_max", "y_max")} == {0, 32, 64}
