import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from server.errors import ProviderUnavailable
from server.inference.artifact import Artifact
from server.inference.cuda.options import padded_sizes
from server.inference.devices import open_on_first
from server.inference.engine import Engine
from server.inference.repository import load_model
from server.inference.session import Session
from tests.support.gpu_sessions import BATCH_SIZE, CALLS, Calls, open_session
from tests.support.sample_images import REPO, batch_of, ranked_scores_apart

pytestmark = pytest.mark.gpu

CALLERS = 4
LIMIT = 0.01  # between two calls of one model with the same images


@pytest.fixture(scope="module")
def batches(artifacts: dict[str, Artifact]) -> list[NDArray[np.uint8]]:
    """Batches of all input shapes and several sizes."""
    metadata = artifacts["fp16"].metadata
    full = {hw: batch_of(metadata, hw, BATCH_SIZE) for hw in metadata.buckets}
    return [images[:size] for images in full.values() for size in (1, 3, 8)]


@pytest.mark.parametrize("setting", ["auto", "cuda", "cuda:0"])
def test_each_setting_that_means_a_gpu_takes_it(
    artifacts: dict[str, Artifact], provider: str, device: str, rehearsal: bool, setting: str
) -> None:
    asked = "cpu" if rehearsal else setting
    session, fallback = open_on_first(
        asked, lambda each: Session.open(artifacts["fp16"], device=each)
    )
    assert fallback is None
    assert (session.provider, session.device) == (provider, device)
    session.close()


def test_a_gpu_that_is_not_there_is_refused(artifacts: dict[str, Artifact]) -> None:
    with pytest.raises(ProviderUnavailable):
        Session.open(artifacts["fp16"], device="cuda:99")


def test_float16_is_chosen_for_the_gpu(device: str, provider: str, rehearsal: bool) -> None:
    engine = Engine.open(load_model(REPO / "weights"), device=device)
    assert engine.provider == provider
    if not rehearsal:
        assert engine.artifact.metadata.precision == "fp16"
        assert engine.max_batch_size == BATCH_SIZE
    engine.warm_up()


def test_the_warm_up_records_every_shape(
    artifacts: dict[str, Artifact],
    device: str,
    rehearsal: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with (
        caplog.at_level(logging.WARNING),
        open_session(artifacts["fp16"], device, "graphs") as session,
    ):
        captured = session.captured
        print(captured)
        if rehearsal:
            assert captured == {}
            return
        shapes = len(artifacts["fp16"].metadata.buckets) * len(padded_sizes(BATCH_SIZE))
        assert len(captured) == shapes
        assert all(captured.values())
    # Such as that there is no pinned memory, or that a graph could not be recorded.
    assert not [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("calls", CALLS)
def test_threads_that_call_at_the_same_time_have_their_own_answers(
    artifacts: dict[str, Artifact], device: str, batches: list[NDArray[np.uint8]], calls: Calls
) -> None:
    with open_session(artifacts["fp16"], device, calls) as session:
        expected = [session.run(images) for images in batches]
        rounds = 1 if device == "cpu" else 10
        with ThreadPoolExecutor(CALLERS) as callers:
            answers = list(callers.map(session.run, batches * rounds))
        for given, right in zip(answers, expected * rounds, strict=True):
            assert ranked_scores_apart(given, right) <= LIMIT


@pytest.mark.parametrize("calls", CALLS)
def test_a_model_that_is_warmed_up_disturbs_none_that_serves(
    artifacts: dict[str, Artifact], device: str, batches: list[NDArray[np.uint8]], calls: Calls
) -> None:
    """As at a reload: graphs must not be recorded while other calls allocate and copy."""
    warm_ups = 1 if device == "cpu" else 2
    with (
        open_session(artifacts["fp16"], device, calls) as serving,
        ThreadPoolExecutor(1) as reloads,
    ):
        expected = [serving.run(images) for images in batches]

        def reload() -> None:
            for _ in range(warm_ups):
                with open_session(artifacts["fp16"], device, calls) as fresh:
                    assert device == "cpu" or all(fresh.captured.values())
                    fresh.run(batches[0])

        reloading = reloads.submit(reload)
        answered = 0
        while not reloading.done():
            i = answered % len(batches)
            assert ranked_scores_apart(serving.run(batches[i]), expected[i]) <= LIMIT
            answered += 1
        reloading.result()
        print(f"{answered} batches while {warm_ups} models were warmed up")


OTHER_OPTIONS = {
    "exhaustive search": {"cudnn_conv_algo_search": "EXHAUSTIVE"},
    "fused bias": {"fuse_conv_bias": "1"},
    "channels last": {"prefer_nhwc": "1"},
    "powers of two": {"arena_extend_strategy": "kNextPowerOfTwo"},
    "TF32": {"use_tf32": "1"},
}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", OTHER_OPTIONS)
def test_no_option_changes_the_answers(
    artifacts: dict[str, Artifact], cpu: Session, device: str, precision: str, name: str
) -> None:
    session = Session.open(
        artifacts[precision],
        device=device,
        # Of shapes of any size, channels last would copy shapes back in each call.
        cuda_graphs=name == "channels last",
        cuda_options=OTHER_OPTIONS[name],
    )
    # One shape: an exhaustive search and a kernel built at run time take their time at each.
    images = batch_of(artifacts[precision].metadata, (480, 480), 2)
    difference = ranked_scores_apart(session.run(images), cpu.run(images))
    print(name, precision, difference)
    session.close()
    assert difference <= 0.03
