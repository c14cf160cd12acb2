from pathlib import Path

import pytest
import torch
from torch import nn
from ultralytics import YOLO
from ultralytics.nn import tasks
from ultralytics.nn.tasks import DetectionModel

from model.attention.focused_linear import BottleneckFLA, C2fFLA, FLABlock
from model.info import comparison
from model.registration import architecture, register

register()


@pytest.mark.parametrize("scale", "nsmlx")
@pytest.mark.parametrize("kind", ["fla", "c2f-fla"])
def test_every_architecture_is_built_at_every_scale(kind: str, scale: str) -> None:
    with torch.device("meta"):  # shapes only: the larger scales have hundreds of megabytes
        layers, _ = tasks.parse_model(architecture(f"yolov8{scale}-{kind}"), 3, verbose=False)
    blocks = [layer for layer in layers if isinstance(layer, FLABlock | C2fFLA)]
    assert len(blocks) == (1 if kind == "fla" else 4)
    assert [layer.i for layer in layers] == list(range(len(layers)))


def test_ultralytics_own_class_builds_the_architecture_from_the_file(repo_dir: Path) -> None:
    network = YOLO(str(repo_dir / "model" / "yolov8s-fla.yaml")).model
    assert isinstance(network.model[10], FLABlock)
    assert network.model[10].attention.dim == 512  # scale n, the first in the file, has 256
    assert network.model[10].f == -1
    assert network.model[10].np == sum(p.numel() for p in network.model[10].parameters())


def test_attention_stands_only_where_a_bottleneck_has_no_shortcut() -> None:
    network = DetectionModel(architecture("yolov8n-c2f-fla"), verbose=False)
    bottlenecks = [m for m in network.modules() if isinstance(m, BottleneckFLA)]
    assert bottlenecks
    assert all(m.attention is not None for m in bottlenecks)
    assert BottleneckFLA(16, 16, shortcut=True).attention is None
    assert isinstance(BottleneckFLA(16, 16, shortcut=False).attention, nn.Module)


def test_a_new_residual_block_changes_nothing() -> None:
    x = torch.randn(1, 64, 7, 9)
    torch.testing.assert_close(FLABlock(64)(x), x, rtol=0, atol=0)


def test_plain_architectures_are_parsed_as_before() -> None:
    network = DetectionModel(tasks.yaml_model_load("yolov8n.yaml"), verbose=False)
    assert sum(p.numel() for p in network.parameters()) == 3_157_200


def test_registering_twice_is_harmless() -> None:
    before = tasks.parse_model
    register()
    assert tasks.parse_model is before


@pytest.mark.parametrize("name", ["yolov8-fla", "yolov8q-fla", "yolov8n-nothing", "../yolov8n-fla"])
def test_an_unknown_architecture_is_named_with_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match=r"yolov8n-c2f-fla, yolov8n-fla") as caught:
        architecture(name)
    assert name in str(caught.value)


def test_a_repeated_block_is_refused() -> None:
    table = architecture("yolov8n-fla")
    table["backbone"][10][1] = 3
    with pytest.raises(ValueError, match="its row says 3 times"):
        DetectionModel(table, verbose=False)


def test_a_block_that_would_change_its_channels_is_refused() -> None:
    table = architecture("yolov8n-fla")
    table["backbone"][10][3][0] = 512
    with pytest.raises(ValueError, match="it gets 256, its row says 128"):
        DetectionModel(table, verbose=False)


def test_info_counts_what_ultralytics_counts_and_the_attention_too() -> None:
    table = comparison("yolov8n-fla", 320)
    _, plain, ours = (line.split() for line in table.splitlines())
    assert plain[:3] == ["yolov8n", "129", "3,157,200"]
    assert ours[0] == "yolov8n-fla"
    assert float(ours[3]) > float(plain[3])
    with pytest.raises(ValueError, match="--imgsz 321"):
        comparison("yolov8n-fla", 321)
