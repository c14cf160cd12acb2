"""Files made to stop the export or the training with something else than a line."""

import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import yaml
from onnx import ModelProto, TensorProto
from torch import nn
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import IterableSimpleNamespace

from export.errors import CheckpointRefused, ExportError, ModelUnsupported
from export.sources.checkpoint import load_checkpoint
from export.sources.class_map import read_class_map
from export.sources.layer_table import read_layer_table
from export.sources.onnx_file import read_onnx
from export.sources.state_dict import load_state_dict_checkpoint
from model.attention.focused_linear import FocusedLinearAttention
from model.checkpoint import read_checkpoint, rebuild
from model.registration import own_architecture, register
from model.transfer import transfer
from tests.support.forks import PLAIN, Fork, saved, small_network
from tests.unit.export.test_onnx_source import network as onnx_network


def exported(path: Path) -> None:
    load_checkpoint(path).graph((64, 64), static=False)


def started_from(path: Path) -> None:
    checkpoint = read_checkpoint(path)
    with suppress(ValueError):
        rebuild(checkpoint)
    transfer(checkpoint, small_network())


def parameter(network: DetectionModel, tensor: torch.Tensor) -> None:
    network.model[0].conv._parameters["weight"] = tensor


def nested(depth: int) -> Any:
    value: Any = IterableSimpleNamespace()
    for _ in range(depth):
        value = IterableSimpleNamespace(inner=value)
    return value


@pytest.mark.parametrize("use", [exported, started_from])
@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1).half().expand(10**7, 10**6),
        torch.zeros(16, 3, 3, 3, device="meta"),
        torch.zeros(16, 3, 3, 3).to_sparse(),
    ],
    ids=["repeated", "meta", "sparse"],
)
def test_tensors_without_their_numbers_are_refused(
    tmp_path: Path, tensor: torch.Tensor, use: Callable[[Path], None]
) -> None:
    network = small_network()
    parameter(network, tensor)
    path = saved({"model": network}, tmp_path / "a.pt")
    with pytest.raises((CheckpointRefused, ValueError), match="not hold the numbers of its shape"):
        use(path)


def test_a_repeated_tensor_among_parameters_alone_is_refused(tmp_path: Path) -> None:
    state = small_network().state_dict()
    state["model.0.conv.weight"] = torch.zeros(1).expand(10**7, 10**6)
    path = saved(state, tmp_path / "a.pt")
    with pytest.raises(CheckpointRefused, match="does not hold the numbers of its shape"):
        load_state_dict_checkpoint(path, "yolov8n")


def changed(change: Callable[[DetectionModel], Any]) -> DetectionModel:
    network = small_network()
    change(network)
    return network


@pytest.mark.parametrize(
    "change",
    [
        lambda n: n.__dict__.update(args=nested(300)),
        lambda n: n.model[1].__dict__.update(_non_persistent_buffers_set=5),
        lambda n: setattr(n.model[-1], "nc", 10**12),
        lambda n: setattr(n.model[-1], "stride", torch.tensor([4.5, 3.3])),
    ],
    ids=["deep", "buffers", "classes", "strides"],
)
def test_odd_attributes_are_one_line(
    tmp_path: Path, change: Callable[[DetectionModel], Any]
) -> None:
    path = saved({"model": changed(change)}, tmp_path / "a.pt")
    with pytest.raises(ExportError) as caught:
        exported(path)
    assert "\n" not in str(caught.value)


def test_a_message_does_not_repeat_a_long_list_of_names(tmp_path: Path) -> None:
    network = changed(lambda n: setattr(n, "names", dict.fromkeys(range(1000), "a" * 100)))
    with pytest.raises(ModelUnsupported, match="its names are") as caught:
        load_checkpoint(saved({"model": network}, tmp_path / "a.pt"))
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "change",
    [
        lambda n: n.model[2]._modules.update(me=n.model[2]),
        lambda n: n.__dict__.update(yaml={"backbone": [], "head": []}),
        lambda n: n.model[1].bn.__dict__.update(_non_persistent_buffers_set=5),
    ],
    ids=["cycle", "no rows", "buffers"],
)
def test_odd_networks_to_start_from_are_one_line(
    tmp_path: Path, change: Callable[[DetectionModel], Any]
) -> None:
    register()
    network = DetectionModel(PLAIN, verbose=False)
    network.names = {0: "a", 1: "b"}
    change(network)
    path = saved({"model": network}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt"):
        rebuild(read_checkpoint(path))


@pytest.mark.parametrize("activation", ["nn.ReLU()", "torch.nn.LeakyReLU(0.2)"])
def test_a_rebuilt_network_keeps_its_activation(tmp_path: Path, activation: str) -> None:
    table = PLAIN | {"activation": f"torch.{activation.removeprefix('torch.')}"}
    network = DetectionModel(table, verbose=False).eval()
    network.names = {0: "a", 1: "b"}
    again = rebuild(read_checkpoint(saved({"model": network}, tmp_path / "a.pt")))
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(x)[0], network(x)[0])


def test_an_activation_that_is_code_is_not_run(tmp_path: Path) -> None:
    code = f"__import__('pathlib').Path({str(tmp_path / 'trace')!r}).touch() or torch.nn.ReLU()"
    table = tmp_path / "yolov8n-mine.yaml"
    table.write_text(yaml.safe_dump(PLAIN | {"scales": {"n": [1, 1, 64]}, "activation": code}))
    with pytest.raises(ValueError, match="its activation is none of"):
        own_architecture(table)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: setattr(layer.dwc, "weight", nn.Parameter(torch.zeros(8))),
        lambda layer: setattr(layer.dwc, "weight", nn.Parameter(torch.zeros(0, 1, 5, 5))),
        lambda layer: setattr(layer.proj, "weight", nn.Parameter(torch.zeros(()))),
        lambda layer: setattr(layer, "focusing_factor", float("inf")),
        lambda layer: layer.__dict__.pop("i"),
        lambda layer: layer.__dict__.update(_state_dict_hooks=5),
    ],
    ids=["flat", "empty", "number", "infinite", "no index", "hooks"],
)
def test_odd_layers_of_a_fork_are_one_line(
    fork: Fork, tmp_path: Path, change: Callable[[Any], object]
) -> None:
    layer = FocusedLinearAttention(32, num_heads=4)
    network = small_network(layer)
    fork.own(layer, "my_fork.FLAttention")
    change(layer)
    path = saved({"model": network}, tmp_path / "a.pt")
    fork.leave()
    with pytest.raises(ExportError) as caught:
        exported(path)
    assert "\n" not in str(caught.value)


def test_an_archive_that_unpacks_to_much_more_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + b"N" * 10**6 + b".")
        archive.writestr("a/version", b"3\n")
    with pytest.raises(CheckpointRefused, match="unpacks to more than 20 times its size"):
        load_checkpoint(tmp_path / "a.pt")
    with pytest.raises(ValueError, match="unpacks to more than 20 times its size"):
        read_checkpoint(tmp_path / "a.pt")


def test_names_of_endless_digits_are_one_line(tmp_path: Path) -> None:
    state = small_network().state_dict()
    state["model.0." + "1" * 6000] = torch.zeros(1)
    with pytest.raises(ModelUnsupported, match="unexpected: ") as caught:
        load_state_dict_checkpoint(saved(state, tmp_path / "a.pt"), "yolov8n")
    assert len(str(caught.value)) < 1000


# Each line stands for ten times what the one before does.
MANY = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)


@pytest.mark.parametrize(
    "text",
    ["[" * 5000, "a: 2020-13-45", "a: !!bool x", "a: !!int x", MANY],
    ids=["deep", "date", "bool", "int", "many"],
)
def test_odd_yaml_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    for read in (read_class_map, lambda path: read_layer_table(str(path), {})):
        with pytest.raises(ModelUnsupported) as caught:
            read(path)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "text",
    ["activation: *a9", "backbone: [[-1, 1, *a9, []]]", "backbone: [[-1, *a9, FLAttention, []]]"],
)
def test_values_that_stand_for_very_many_are_not_written_out(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"{MANY}backbone: []\nhead: []\n{text}\n")
    with pytest.raises(ModelUnsupported, match="list"):
        read_layer_table(str(path), {})


@pytest.mark.parametrize(
    "scales",
    [
        {"scale": [1], "scales": {"n": [1, 1, 64]}},
        {"scales": {1: [1, 1, 64]}},
        {"scales": {"n": [float("inf"), 1, 64]}},
    ],
)
def test_odd_scales_are_no_traceback(tmp_path: Path, scales: dict[str, Any]) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump(PLAIN | scales))
    state = small_network().state_dict()
    with suppress(ModelUnsupported):
        load_state_dict_checkpoint(saved(state, tmp_path / "a.pt"), str(path))


def with_input(*sides: int) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        for dimension, side in zip(
            model.graph.input[0].type.tensor_type.shape.dim, sides, strict=True
        ):
            dimension.dim_value = side

    return change


def with_sparse_weights(model: ModelProto) -> None:
    sparse = model.graph.sparse_initializer.add(dims=[4])
    sparse.values.CopyFrom(onnx.TensorProto(name="s", data_type=TensorProto.FLOAT, dims=[2]))
    sparse.values.data_location = TensorProto.EXTERNAL
    sparse.values.external_data.add(key="location", value="elsewhere")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (with_input(1, 3, -32, -32), "negative or above"),
        (with_input(-1, 3, 64, 64), "negative or above"),
        (with_input(1, 3, 32 * 10**7, 32 * 10**7), "negative or above"),
        (with_input(10**9, 3, 64, 64), "negative or above"),
        (with_sparse_weights, "sparse weights"),
    ],
    ids=["negative", "negative batch", "huge", "huge batch", "sparse"],
)
def test_onnx_files_that_ask_for_too_much_are_refused(
    tmp_path: Path, change: Callable[[ModelProto], None], said: str
) -> None:
    model = onnx_network()
    change(model)
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match=said):
        read_onnx(tmp_path / "a.onnx")
