from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks.micro.fast_path import encoded_image, main
from tests.support.artifacts import tiny_artifact


def test_every_stage_of_every_size_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = tiny_artifact(tmp_path / "tiny.onnx")
    threads = cv2.getNumThreads()
    try:
        main(["--rounds", "1", "--model", str(artifact)])
    finally:
        cv2.setNumThreads(threads)
    printed = capsys.readouterr().out
    stages = ("decode", "letterbox", "inference", "NMS", "JSON")
    for stage in stages:
        assert printed.count(f"  {stage}") >= 6, stage
    assert printed.count("1 thread ") == 3


def test_the_image_has_the_size_asked_for() -> None:
    decoded = cv2.imdecode(np.frombuffer(encoded_image(1280, 720), np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    assert decoded.shape == (720, 1280, 3)
