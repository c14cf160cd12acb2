from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from server.artifact import Artifact, load_artifact
from server.devices import gpu_visible, open_on_first
from server.errors import ProviderUnavailable
from server.session import Session
from tests.artifacts import tiny_artifact, tiny_candidates

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        "CUDAExecutionProvider" not in onnxruntime.get_available_providers(),
        reason="this onnxruntime is built without CUDA",
    ),
    pytest.mark.skipif(not gpu_visible(), reason="no NVIDIA GPU is visible here"),
]


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return load_artifact(tiny_artifact(tmp_path / "tiny.onnx"))


@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:0"])
def test_the_model_runs_on_the_gpu(artifact: Artifact, device: str) -> None:
    session, fallback = open_on_first(device, lambda each: Session.open(artifact, device=each))
    assert fallback is None
    assert (session.provider, session.device) == ("CUDAExecutionProvider", "cuda:0")
    assert session.nodes_by_provider["CUDAExecutionProvider"] > 0
    session.warm_up([1, 2, 3])
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    np.testing.assert_allclose(session.run(images), tiny_candidates(images), atol=1e-5)


def test_a_gpu_that_is_not_there_is_refused(artifact: Artifact) -> None:
    with pytest.raises(ProviderUnavailable):
        Session.open(artifact, device="cuda:99")
