"""The images, built once; where no container tool can be had, all tests here are skipped."""

from pathlib import Path

import pytest

from benchmarks.container_engine import BUILD_S, Engine, NoTool


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whichever test comes first waits for the build."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.timeout(2 * BUILD_S))
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def engine(repo_dir: Path) -> Engine:
    try:
        return Engine.find(repo_dir)
    except NoTool as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def cpu_image(engine: Engine) -> str:
    return engine.build(
        "yolov8-fla:test-cpu", "--build-arg=EXTRA=cpu", "--build-arg=REVISION=a-revision"
    )


@pytest.fixture(scope="session")
def gpu_image(engine: Engine) -> str:
    # The default: what `docker build .` gives.
    return engine.build("yolov8-fla:test-gpu", "--build-arg=REVISION=a-revision")
