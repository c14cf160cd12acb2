"""What makes CUDA graphs possible: of fixed shapes, nothing is left to be worked out in a call."""

from collections import Counter
from pathlib import Path

import onnxruntime
import pytest

from server.errors import ProviderUnavailable, SettingsInvalid
from server.inference.artifact import load_artifact
from server.inference.cuda.model import GpuModel, fix_shape, input_dimensions
from server.inference.cuda.placement import nodes_by_provider
from server.inference.devices import CPU, TENSORRT
from server.inference.onnx_session import load, session_options
from tests.support.artifacts import tiny_artifact

WORKED_OUT = {"Shape", "Size", "Range", "ConstantOfShape", "Min", "Equal", "Where"}


def operators_when(artifact_path: Path, *free: int) -> Counter[str]:
    """The operators of a model whose dimensions are fixed, but for some of them."""
    artifact = load_artifact(artifact_path)
    options = session_options(1)
    dimensions = [
        1 if each in free else name for each, name in enumerate(input_dimensions(artifact))
    ]
    fix_shape(options, dimensions, (4, *artifact.metadata.buckets[-1], 3))
    assert options.enable_mem_pattern  # or recording a graph would allocate
    (nodes,) = nodes_by_provider(load(artifact, options, [(CPU, {})])).values()
    return Counter(node.operator for node in nodes)


@pytest.mark.parametrize("file", ["yolov8n-fla-bccd.onnx", "yolov8n-fla-bccd-fp16.onnx"])
def test_the_default_weights_of_fixed_shape_work_out_no_shape(repo_dir: Path, file: str) -> None:
    path = repo_dir / "weights" / file
    assert operators_when(path).keys() & WORKED_OUT == set()
    # And not with less: the shapes of the attention and of the anchor points hang on all three.
    assert operators_when(path, 0).keys() & WORKED_OUT
    assert operators_when(path, 1, 2).keys() & WORKED_OUT


def test_the_names_of_free_dimensions_are_the_files(tmp_path: Path, repo_dir: Path) -> None:
    tiny = load_artifact(tiny_artifact(tmp_path / "tiny.onnx"))
    assert input_dimensions(tiny) == ("B", "H", "W", 3)
    default = load_artifact(repo_dir / "weights" / "yolov8n-fla-bccd.onnx")
    assert input_dimensions(default) == ("batch", "height", "width", 3)


def test_tensorrt_records_no_cuda_graphs(tmp_path: Path) -> None:
    tiny = load_artifact(tiny_artifact(tmp_path / "tiny.onnx"))
    with pytest.raises(SettingsInvalid, match="cuda_graphs is for the CUDA provider"):
        GpuModel(tiny, TENSORRT, 0, 1, (1, 2), graphs=True)


@pytest.mark.skipif(
    TENSORRT in onnxruntime.get_available_providers(), reason="this onnxruntime has TensorRT"
)
def test_a_build_without_the_provider_is_refused(tmp_path: Path) -> None:
    tiny = load_artifact(tiny_artifact(tmp_path / "tiny.onnx"))
    with pytest.raises(ProviderUnavailable, match="built without Tensorrt"):
        GpuModel(tiny, TENSORRT, 0, 1, (1, 2))
