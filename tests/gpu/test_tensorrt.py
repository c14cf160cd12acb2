from collections.abc import Iterator
from pathlib import Path

import onnxruntime
import pytest

from server.doctor.gpu_facts import TENSORRT_LIBRARIES, find_libraries
from server.inference.artifact import Artifact
from server.inference.session import Session
from tests.support.sample_images import batch_of, ranked_scores_apart

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]  # engines are built, minutes each

TENSORRT = "TensorrtExecutionProvider"


@pytest.fixture(scope="module", autouse=True)
def tensorrt(rehearsal: bool) -> None:
    if rehearsal:
        pytest.skip("a CPU cannot rehearse TensorRT")
    if TENSORRT not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime is built without TensorRT")
    missing = [each.name for each in find_libraries(TENSORRT_LIBRARIES) if each.path is None]
    if missing:
        wanted = " ".join(sorted({f"'{each}'" for each in TENSORRT_LIBRARIES.values()}))
        pytest.skip(f"TensorRT is missing ({', '.join(missing)}): pip install {wanted}")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tensorrt")


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def session(
    request: pytest.FixtureRequest, artifacts: dict[str, Artifact], cache: Path
) -> Iterator[Session]:
    session = Session.open(
        artifacts[request.param], device="tensorrt", max_batch_size=2, tensorrt_cache=cache
    )
    yield session
    session.close()


def test_tensorrt_runs_the_model_and_answers_as_the_cpu_does(
    session: Session, cpu: Session, artifacts: dict[str, Artifact]
) -> None:
    assert session.provider == TENSORRT
    print(session.nodes_by_provider)
    for hw in artifacts["fp32"].metadata.buckets[:2]:
        for size in (2, 1):
            images = batch_of(artifacts["fp32"].metadata, hw, size)
            assert ranked_scores_apart(session.run(images), cpu.run(images)) <= 0.03


def test_what_was_built_is_kept(session: Session, cache: Path) -> None:
    assert session.provider == TENSORRT
    assert any(path.suffix == ".engine" for path in cache.rglob("*"))
