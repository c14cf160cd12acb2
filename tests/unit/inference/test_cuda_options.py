"""The options of a GPU's providers, and which batch sizes there are."""

from pathlib import Path
from typing import Any

import pytest

from server.inference.artifact import Metadata, load_artifact
from server.inference.cuda.options import (
    cuda_providers,
    padded_size,
    padded_sizes,
    tensorrt_providers,
)
from server.inference.devices import CPU, CUDA, TENSORRT
from tests.support.artifacts import tiny_artifact


def metadata(folder: Path, **overrides: Any) -> Metadata:
    return load_artifact(tiny_artifact(folder / "tiny.onnx", **overrides)).metadata


@pytest.mark.parametrize(
    ("largest", "sizes"),
    [
        (1, (1,)),
        (2, (1, 2)),
        (3, (1, 2, 3)),
        (8, (1, 2, 4, 8)),
        (12, (1, 2, 4, 8, 12)),
        (16, (1, 2, 4, 8, 16)),
        (256, (1, 2, 4, 8, 16, 32, 64, 128, 256)),
    ],
)
def test_batches_are_padded_to_powers_of_two_and_the_largest(
    largest: int, sizes: tuple[int, ...]
) -> None:
    assert padded_sizes(largest) == sizes
    padded = [padded_size(images, sizes) for images in range(1, largest + 1)]
    assert set(padded) == set(sizes)
    assert all(images <= size for images, size in enumerate(padded, start=1))
    assert padded == sorted(padded)
    assert padded_size(sizes[-1] + 1, sizes) == sizes[-1] + 1


def test_a_cpu_pads_nothing() -> None:
    assert [padded_size(images, ()) for images in (1, 3, 7)] == [1, 3, 7]


def test_the_defaults_are_the_careful_ones() -> None:
    (provider, options), last = cuda_providers(3)
    assert (provider, last) == (CUDA, (CPU, {}))
    assert options == {
        "device_id": 3,
        "cudnn_conv_algo_search": "HEURISTIC",
        "cudnn_conv_use_max_workspace": "1",
        "use_tf32": "0",
        "arena_extend_strategy": "kSameAsRequested",
        "enable_cuda_graph": "0",
    }


def test_changes_for_a_measurement_reach_the_provider() -> None:
    changes = {"use_tf32": "1", "prefer_nhwc": "1"}
    options = cuda_providers(0, graphs=True, changes=changes)[0][1]
    assert options == {**cuda_providers(0)[0][1], **changes, "enable_cuda_graph": "1"}


@pytest.mark.parametrize(
    ("precision", "fp16", "int8"),
    [("fp32", "False", "False"), ("fp16", "True", "False"), ("int8", "False", "True")],
)
def test_tensorrt_computes_in_the_precision_of_the_file(
    tmp_path: Path, precision: str, fp16: str, int8: str
) -> None:
    model = metadata(tmp_path, precision=precision)
    providers = tensorrt_providers(1, model, (1, 2, 4), cache=None)
    assert [provider for provider, _ in providers] == [TENSORRT, CUDA, CPU]
    told = providers[0][1]
    assert (told["device_id"], providers[1][1]["device_id"]) == (1, 1)
    assert (told["trt_fp16_enable"], told["trt_int8_enable"]) == (fp16, int8)
    assert not any("cache" in name for name in told)


def test_one_engine_of_tensorrt_takes_every_shape_that_will_come(tmp_path: Path) -> None:
    model = metadata(tmp_path, input_hw=(96, 128), buckets=((96, 128), (32, 128), (96, 64)))
    told = tensorrt_providers(0, model, (1, 2, 4, 6), cache=tmp_path)[0][1]
    assert told["trt_profile_min_shapes"] == "images:1x32x64x3"
    assert told["trt_profile_opt_shapes"] == "images:6x96x128x3"
    assert told["trt_profile_max_shapes"] == "images:6x96x128x3"
    assert (told["trt_engine_cache_enable"], told["trt_timing_cache_enable"]) == ("True", "True")
    assert {told["trt_engine_cache_path"], told["trt_timing_cache_path"]} == {str(tmp_path)}
