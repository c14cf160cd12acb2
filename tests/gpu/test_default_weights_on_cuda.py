import json
import os
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from server.choice import load_model
from server.devices import gpu_visible
from server.doctor.command import main as doctor
from server.engine import Engine
from server.gpu_metrics import open_nvml, register_gpu_metrics
from server.session import Session

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        "CUDAExecutionProvider" not in onnxruntime.get_available_providers(),
        reason="this onnxruntime is built without CUDA",
    ),
    pytest.mark.skipif(not gpu_visible(), reason="no NVIDIA GPU is visible here"),
]


def test_float16_is_chosen_and_runs_on_the_gpu(repo_dir: Path) -> None:
    engine = Engine.open(load_model(repo_dir / "weights"), device="cuda")
    assert engine.artifact.metadata.precision == "fp16"
    assert engine.provider == "CUDAExecutionProvider"
    engine.warm_up()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_gpu_answers_as_the_cpu_does(repo_dir: Path, precision: str) -> None:
    (artifact,) = (
        each for each in load_model(repo_dir / "weights") if each.metadata.precision == precision
    )
    images = np.random.default_rng(0).integers(0, 256, (2, 384, 480, 3), np.uint8)
    cpu = Session.open(artifact, device="cpu").run(images)
    gpu = Session.open(artifact, device="cuda").run(images)
    # The best candidates' scores; on noise the order of the others is anybody's.
    limit = {"fp32": 1e-3, "fp16": 2e-2}[precision]
    np.testing.assert_allclose(gpu[:, :20, 4], cpu[:, :20, 4], atol=limit)


def test_the_doctor_says_what_runs_on_the_gpu(
    repo_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", str(repo_dir / "weights"), "--device", "cuda", "--port", "0", "--json"]
    assert doctor(flags, os.environ)
    checks = {each["name"]: each for each in json.loads(capsys.readouterr().out)["checks"]}
    assert "CUDAExecutionProvider on cuda:0" in checks["runs on"]["text"]
    assert checks["driver"]["mark"] == "ok"
    assert checks["chosen"]["text"].startswith("fp16: ")


def test_the_driver_tells_the_use_of_the_gpu() -> None:
    registry = CollectorRegistry()
    register_gpu_metrics(registry, open_nvml())
    text = generate_latest(registry).decode()
    assert "detector_gpu_memory_total_bytes{" in text
    assert "detector_gpu_memory_used_bytes{" in text
