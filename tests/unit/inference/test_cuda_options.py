"""What a GPU's providers are told, and which batch sizes there are."""

from pathlib import Path
from typing import Any

import pytest

from server.errors import SettingsInvalid
from server.inference.artifact import Metadata, load_artifact
from server.inference.cuda.options import (
    CudaOptions,
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
    (provider, told), last = cuda_providers(CudaOptions(), 3)
    assert (provider, last) == (CUDA, (CPU, {}))
    assert told == {
        "device_id": 3,
        "cudnn_conv_algo_search": "HEURISTIC",
        "cudnn_conv_use_max_workspace": "1",
        "fuse_conv_bias": "0",
        "prefer_nhwc": "0",
        "use_tf32": "0",
        "arena_extend_strategy": "kSameAsRequested",
        "enable_cuda_graph": "0",
    }


def test_every_choice_reaches_the_provider() -> None:
    options = CudaOptions(
        calls="captured",
        conv_search="EXHAUSTIVE",
        conv_max_workspace=False,
        fuse_conv_bias=True,
        prefer_nhwc=True,
        tf32=True,
        arena="kNextPowerOfTwo",
        memory_limit_bytes=2**30,
    )
    defaults = dict(cuda_providers(CudaOptions(), 0)[0][1])
    told = cuda_providers(options, 0, graphs=True)[0][1]
    assert told.pop("gpu_mem_limit") == str(2**30)
    assert {name for name in defaults if told[name] == defaults[name]} == {"device_id"}


@pytest.mark.parametrize("calls", ["plain", "bound"])
def test_channels_last_are_refused_where_they_would_copy_shapes_back(calls: Any) -> None:
    with pytest.raises(SettingsInvalid, match="prefer_nhwc needs calls 'fixed' or 'captured'"):
        CudaOptions(calls=calls, prefer_nhwc=True)


def test_there_is_at_least_one_instance() -> None:
    with pytest.raises(SettingsInvalid, match="instances is 0"):
        CudaOptions(instances=0)


@pytest.mark.parametrize(
    ("precision", "fp16", "int8"),
    [("fp32", "False", "False"), ("fp16", "True", "False"), ("int8", "False", "True")],
)
def test_tensorrt_computes_in_the_precision_of_the_file(
    tmp_path: Path, precision: str, fp16: str, int8: str
) -> None:
    model = metadata(tmp_path, precision=precision)
    providers = tensorrt_providers(CudaOptions(), 1, model, (1, 2, 4), cache=None)
    assert [provider for provider, _ in providers] == [TENSORRT, CUDA, CPU]
    told = providers[0][1]
    assert (told["device_id"], providers[1][1]["device_id"]) == (1, 1)
    assert (told["trt_fp16_enable"], told["trt_int8_enable"]) == (fp16, int8)
    assert not any("cache" in name for name in told)


def test_one_engine_of_tensorrt_takes_every_shape_that_will_come(tmp_path: Path) -> None:
    model = metadata(tmp_path, input_hw=(96, 128), buckets=((96, 128), (32, 128), (96, 64)))
    told = tensorrt_providers(CudaOptions(), 0, model, (1, 2, 4, 6), cache=tmp_path)[0][1]
    assert told["trt_profile_min_shapes"] == "images:1x32x64x3"
    assert told["trt_profile_opt_shapes"] == "images:6x96x128x3"
    assert told["trt_profile_max_shapes"] == "images:6x96x128x3"
    assert (told["trt_engine_cache_enable"], told["trt_timing_cache_enable"]) == ("True", "True")
    assert {told["trt_engine_cache_path"], told["trt_timing_cache_path"]} == {str(tmp_path)}


def test_an_engine_of_a_fixed_shape_needs_no_range(tmp_path: Path) -> None:
    options = CudaOptions(calls="fixed")
    told = tensorrt_providers(options, 0, metadata(tmp_path), (1, 2), cache=None)[0][1]
    assert not any("profile" in name for name in told)
