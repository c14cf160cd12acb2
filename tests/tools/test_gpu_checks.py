"""What tests/gpu measures with, tried where there is no GPU."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from server.inference.artifact import load_artifact
from tests.support.executed import executed, nodes_of
from tests.support.gpu_machine import missing_gpu, reading
from tests.support.gpu_soak import grown
from tests.support.hard_blocks import FOLDER, SIZES, attentions, expected
from tests.support.hard_maps import CHANNELS, ordinary
from tests.support.sample_images import Apart, apart, batch_of, farthest, ranked_scores_apart

ROW = (10, 10, 30, 40, 0.8, 1)


def rows(*each: tuple[float, ...]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.array(each, np.float32).reshape(-1, 6)


@pytest.mark.parametrize(
    ("ours", "found"),
    [
        ([ROW], Apart(0, 0, 0, 1)),
        ([(11, 10, 30, 42, 0.7, 1)], Apart(0.1, 2, 0, 1)),
        ([(10, 10, 30, 40, 0.8, 2)], Apart(0, 0, 1, 1)),  # another class
        ([(25, 10, 45, 40, 0.8, 1)], Apart(0, 0, 1, 1)),  # elsewhere
        ([], Apart(0, 0, 1, 1)),
        ([(12, 10, 32, 40, 0.6, 1), ROW, (0, 0, 5, 5, 0.1, 0)], Apart(0, 0, 0, 1)),
    ],
)
def test_the_counterpart_of_a_row_is_found(ours: list[tuple[float, ...]], found: Apart) -> None:
    given = apart(rows(*ours), rows(ROW, (0, 0, 9, 9, 0.1, 1)), least_score=0.25)
    assert (given.unmatched, given.compared) == (found.unmatched, found.compared)
    assert (given.scores, given.boxes_px) == pytest.approx((found.scores, found.boxes_px), abs=1e-6)


def test_the_largest_of_several_differences_counts() -> None:
    assert farthest([Apart(0.1, 2, 0, 3), Apart(0.2, 1, 1, 4)]) == Apart(0.2, 2, 1, 7)


def test_the_order_of_equal_scores_does_not_matter() -> None:
    one, other = rows(ROW, (0, 0, 9, 9, 0.8, 0)), rows((0, 0, 9, 9, 0.8, 0), ROW)
    assert ranked_scores_apart(one[None], other[None]) == 0
    assert ranked_scores_apart(one[None], other[None] - 0.5) == pytest.approx(0.5)


def test_the_nodes_of_a_profile_are_counted() -> None:
    def node(provider: str, operator: str) -> dict[str, object]:
        return {"cat": "Node", "args": {"provider": provider, "op_name": operator}}

    profile = [node("CUDA", "Conv"), node("CUDA", "Conv"), node("CPU", "Gather")]
    profile += [{"cat": "Session"}, {"cat": "Node", "args": {"op_name": "Conv"}}]
    assert nodes_of(profile) == {("CUDA", "Conv"): 2, ("CPU", "Gather"): 1}


def test_what_ran_is_read_from_a_real_profile(tmp_path: Path) -> None:
    x = {"x": ordinary(1)}
    ran = executed(FOLDER / "random-fp32.onnx", [("CPUExecutionProvider", {})], x, tmp_path)
    assert {provider for provider, _ in ran} == {"CPUExecutionProvider"}
    assert any("Conv" in operator for _, operator in ran)


@pytest.mark.parametrize(
    ("visible", "driver", "providers", "reason"),
    [
        (False, False, ["CUDAExecutionProvider"], "no NVIDIA GPU is visible"),
        (True, True, ["CPUExecutionProvider"], "built without CUDA: make test-gpu EXTRA=gpu"),
        # Whether it works, the tests say.
        (True, False, ["CUDAExecutionProvider"], None),
        (False, True, ["CUDAExecutionProvider"], None),
    ],
)
def test_gpu_tests_skip_where_there_is_none(
    visible: bool, driver: bool, providers: list[str], reason: str | None
) -> None:
    given = missing_gpu(visible=lambda: visible, driver=lambda: driver, providers=lambda: providers)
    assert given == reason or (given and reason and reason in given)


def test_used_memory_is_read() -> None:
    assert reading("cpu")() > 10 * 2**20


def test_what_was_there_before_the_model_does_not_make_growth_small() -> None:
    assert grown({"before": 1000, "warm": 1100, "after": 1102}) == pytest.approx(0.02)


def test_every_input_shape_is_filled_with_different_images(repo_dir: Path) -> None:
    metadata = load_artifact(repo_dir / "weights" / "yolov8n-fla-bccd.onnx").metadata
    for hw in metadata.buckets:
        batch = batch_of(metadata, hw, 8)
        assert batch.shape == (8, *hw, 3)
        assert len({each.tobytes() for each in batch}) == 8


@pytest.mark.parametrize("name", ["random", "negative"])
def test_the_committed_blocks_are_what_the_export_makes_of_the_module(name: str) -> None:
    committed = np.load(FOLDER / f"{name}.npz")
    for name_of_size, answer in expected(attentions()[name]).items():
        largest = np.abs(answer).max()
        np.testing.assert_allclose(committed[name_of_size], answer, atol=1e-6 * largest)
    for precision, limit in (("fp32", 1e-5), ("fp16", 2**-8)):
        session = onnxruntime.InferenceSession(
            str(FOLDER / f"{name}-{precision}.onnx"), providers=["CPUExecutionProvider"]
        )
        for size in SIZES:
            (given,) = session.run(None, {"x": ordinary(size)})
            answer = committed[f"{size:g}"]
            difference = np.abs(given[:, :CHANNELS] - answer).max()
            assert difference <= limit * np.abs(answer).max()
