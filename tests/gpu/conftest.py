"""Tests here need a GPU and skip without one; `--rehearse` runs their own code on a CPU instead."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.inference.artifact import Artifact
from server.inference.repository import load_model
from server.inference.session import Session
from tests.support.gpu_machine import Reading, missing_gpu, reading


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rehearse",
        action="store_true",
        help="run tests/gpu on the CPU, with few batches: shows faults of the tests themselves",
    )


@pytest.fixture(scope="session")
def rehearsal(request: pytest.FixtureRequest) -> bool:
    """Whether these tests are only tried, on a CPU."""
    # Without a default it would be an error where this folder is not what pytest was started for.
    return bool(request.config.getoption("--rehearse", default=False))


@pytest.fixture(scope="session", autouse=True)
def device(rehearsal: bool) -> str:
    """Where these tests run: "cuda:0", or "cpu" in a rehearsal."""
    if rehearsal:
        return "cpu"
    reason = missing_gpu()
    if reason:
        pytest.skip(reason)
    return "cuda:0"


@pytest.fixture(scope="session")
def provider(rehearsal: bool) -> str:
    """The execution provider that has to do the work."""
    return "CPUExecutionProvider" if rehearsal else "CUDAExecutionProvider"


@pytest.fixture(scope="session")
def artifacts(repo_dir: Path) -> dict[str, Artifact]:
    """The default weights, by precision."""
    return {each.metadata.precision: each for each in load_model(repo_dir / "weights")}


@pytest.fixture(scope="module")
def cpu(artifacts: dict[str, Artifact], device: str) -> Iterator[Session]:
    """The reference: the default weights in float32 on the CPU."""
    session = Session.open(artifacts["fp32"], device="cpu")
    yield session
    session.close()


@pytest.fixture(scope="session")
def memory(rehearsal: bool) -> Reading:
    """How much memory is used: the GPU's, or this process' in a rehearsal."""
    return reading("cpu" if rehearsal else "cuda:0")
