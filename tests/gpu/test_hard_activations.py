"""Attention blocks whose tokens are all negative, or whose activations are huge."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from server.inference.artifact import Artifact
from server.inference.cuda.options import cuda_providers
from server.inference.session import Session
from tests.support.gpu_sessions import RecordProperty
from tests.support.hard_maps import CHANNELS, adversarial, ordinary

pytestmark = pytest.mark.gpu

BLOCKS = Path(__file__).with_name("blocks")
# Of the largest output. float16: what goes in and comes out is rounded to 11 bits, and once more
# behind the attention; what is between is float32.
LIMITS = {"fp32": 1e-4, "fp16": 2**-8}
NAMES = ("random", "negative")


def block(name: str, precision: str, device: str) -> Any:
    """A session of a block, with the server's options."""
    path = BLOCKS / f"{name}-{precision}.onnx"
    if not path.is_file():
        pytest.skip(f"{path} is missing: python -m tests.support.hard_blocks makes it")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    providers: list[Any] = ["CPUExecutionProvider"]
    if device != "cpu":
        providers = cuda_providers(0)
    session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    assert session.get_providers()[0] == (
        "CPUExecutionProvider" if device == "cpu" else "CUDAExecutionProvider"
    )
    return session


@pytest.fixture(scope="module", autouse=True)
def libraries(artifacts: dict[str, Artifact], device: str) -> None:
    """The CUDA libraries are loaded, as the server does it."""
    Session.open(artifacts["fp16"], device=device).close()


@pytest.mark.parametrize("size", ["0.001", "1", "1000"])
@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("name", NAMES)
def test_a_block_gives_what_the_module_gives(
    device: str, record_property: RecordProperty, name: str, precision: str, size: str
) -> None:
    session = block(name, precision, device)
    expected: NDArray[np.float32] = np.load(BLOCKS / f"{name}.npz")[size]
    (given,) = session.run(None, {"x": ordinary(float(size))})
    assert given.shape[1] == 2 * CHANNELS  # behind the block's output comes its input
    assert np.isfinite(given).all()
    largest = float(np.abs(expected).max())
    difference = float(np.abs(given[:, :CHANNELS] - expected).max()) / largest
    print(name, precision, size, difference)
    record_property("difference", difference)
    assert difference <= LIMITS[precision]


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("name", NAMES)
def test_no_map_gives_nan_or_inf(device: str, name: str, precision: str) -> None:
    session = block(name, precision, device)
    count = 0
    for maps in adversarial(np.random.default_rng(len(name))):
        (given,) = session.run(None, {"x": maps.astype(np.float32)})
        assert np.isfinite(given).all()
        count += len(maps)
    assert count == 1000
