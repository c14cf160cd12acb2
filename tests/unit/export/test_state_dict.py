"""Files that hold parameters only, with the layer table that they belong to."""

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn
from ultralytics.nn.tasks import DetectionModel

from export.errors import CheckpointRefused, ModelUnsupported
from export.sources.checkpoint import load_checkpoint
from export.sources.state_dict import load_state_dict_checkpoint
from model.attention.focused_linear import FocusedLinearAttention
from model.checkpoint import load
from model.registration import architecture, register
from tests.support.forks import TABLE, Calls, check_predictions, saved, small_network

TUTORIALS = ("tutorial_flattention_layers", "tutorial_c2f_fla_neck")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """The layer table of `small_network`, as a file."""
    path = tmp_path / "yolov8n-small.yaml"
    rows: dict[str, Any] = deepcopy(TABLE)
    rows["backbone"].pop()
    rows["head"][0][0] = [2, 3]
    path.write_text(yaml.safe_dump(rows))
    return path


@pytest.fixture
def network(table: Path) -> DetectionModel:
    torch.manual_seed(0)
    network = DetectionModel(yaml.safe_load(table.read_text()), verbose=False)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            nn.init.normal_(module.running_mean)
    return network.eval()


def state_and_table(tutorial: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What a tutorial's training would have saved with `state_dict`, and the YAML it had."""
    _, model = load(tutorial, tutorial.read_bytes())
    return model.state_dict(), model.yaml


@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorials_parameters_with_its_yaml_give_what_its_fork_gave(
    name: str, shared_dir: Path, tmp_path: Path
) -> None:
    tutorial = shared_dir / "checkpoints" / f"{name}.pt"
    state, rows = state_and_table(tutorial)
    assert any(key.endswith("dwc.weight") for key in state)
    arch = tmp_path / "yolov8-fla.yaml"
    rows = {key: rows[key] for key in ("nc", "scales", "backbone", "head")}
    arch.write_text(yaml.safe_dump(rows | {"nc": 80, "names": ["RBC", "WBC", "Platelets"]}))
    checkpoint = load_state_dict_checkpoint(saved(state, tmp_path / "state.pth"), str(arch))
    assert checkpoint.class_names == ("RBC", "WBC", "Platelets")
    assert checkpoint.architecture == "yolov8n-fla"
    for imgsz in (160, 320):
        check_predictions(checkpoint.predict, tutorial, imgsz)


def test_the_default_weights_parameters_give_what_the_checkpoint_gives(
    repo_dir: Path, tmp_path: Path
) -> None:
    whole = load_checkpoint(repo_dir / "weights" / "yolov8n-fla-bccd.pt")
    state = {key: value.half() for key, value in whole.model.state_dict().items()}
    path = saved({"model_state_dict": state, "epoch": 3}, tmp_path / "state.pt")
    names = ("red", "white", "platelet")
    checkpoint = load_state_dict_checkpoint(path, "yolov8n-fla", names)
    assert checkpoint.architecture == "yolov8n-fla"
    assert checkpoint.class_names == names
    assert checkpoint.strides == (8, 16, 32)
    x = np.random.default_rng(0).random((1, 3, 96, 160), dtype=np.float32)
    np.testing.assert_array_equal(checkpoint.predict(x), whole.predict(x))


@pytest.mark.parametrize("arch", ["yolov8n", "yolov8n-c2f-fla"])
def test_every_architecture_of_ours_takes_its_parameters(arch: str, tmp_path: Path) -> None:
    register()
    network = DetectionModel(architecture(arch) | {"nc": 4}, verbose=False).eval()
    path = saved(network.state_dict(), tmp_path / "state.pt")
    checkpoint = load_state_dict_checkpoint(path, arch)
    assert checkpoint.class_names == ("class_0", "class_1", "class_2", "class_3")
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected = network(x)[0][0].numpy()
    np.testing.assert_array_equal(checkpoint.predict(x.numpy()), expected)


@pytest.mark.parametrize("key", [None, "ema", "model", "state_dict", "model_state_dict"])
@pytest.mark.parametrize(
    "prefix", ["", "model.", "module.model.", "_orig_mod.model.", "model.model."]
)
def test_parameters_are_found_under_any_key_and_prefix(
    network: DetectionModel, table: Path, tmp_path: Path, key: str | None, prefix: str
) -> None:
    state = {
        prefix + name.removeprefix("model."): value for name, value in network.state_dict().items()
    }
    content = {key: state, "epoch": 3, "optimizer": {"lr": 0.1}} if key else state
    checkpoint = load_state_dict_checkpoint(saved(content, tmp_path / "s.pt"), str(table))
    x = torch.rand(1, 3, 32, 64)
    with torch.no_grad():
        expected = network(x)[0][0].numpy()
    np.testing.assert_array_equal(checkpoint.predict(x.numpy()), expected)


@pytest.mark.parametrize("form", [{}, {"fused_qkv": True}, {"num_patches": 64, "sr_ratio": 2}])
@pytest.mark.parametrize("name", ["FocusedLinearAttention", "FLAttention"])
def test_a_table_with_an_attention_takes_every_form(
    tmp_path: Path, form: dict[str, Any], name: str
) -> None:
    """Whatever the row's arguments are: the parameters say what it is."""
    attention = FocusedLinearAttention(32, num_heads=4, qkv_bias=True, **form)
    attention.summed_keys = "num_patches" not in form
    network = small_network(attention).eval()
    rows: dict[str, Any] = deepcopy(TABLE)
    rows["backbone"][4] = [-1, 1, name, [1024, 64]]
    arch = tmp_path / "mine.yaml"
    arch.write_text(yaml.safe_dump(rows))
    path = saved(network.state_dict(), tmp_path / "state.pt")
    checkpoint = load_state_dict_checkpoint(path, str(arch))
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected = network(x)[0][0].numpy()
    np.testing.assert_allclose(checkpoint.predict(x.numpy()), expected, atol=1e-5, rtol=1e-5)


def test_attention_beside_a_shortcut_is_in_the_file_and_never_run(
    shared_dir: Path, tmp_path: Path
) -> None:
    tutorial = shared_dir / "checkpoints" / "tutorial_c2f_fla_neck.pt"
    state, rows = state_and_table(tutorial)
    rows["head"][2] = [-1, 3, "C2f_FLA", [512, True]]
    rows["scale"] = "n"
    arch = tmp_path / "yolov8.yaml"
    arch.write_text(yaml.safe_dump(rows))
    path = saved(state, tmp_path / "state.pt")
    bottleneck = load_state_dict_checkpoint(path, str(arch)).model.model[12].m[0]
    assert bottleneck.add
    assert bottleneck.attention is None


def test_the_scale_is_the_parameters_own(tmp_path: Path) -> None:
    """Whatever the file is called, and whichever scale comes first in it."""
    register()
    rows = architecture("yolov8s")
    network = DetectionModel(rows | {"nc": 2}, verbose=False)
    arch = tmp_path / "yolov8n-custom.yaml"
    arch.write_text(yaml.safe_dump({key: rows[key] for key in ("scales", "backbone", "head")}))
    path = saved(network.state_dict(), tmp_path / "state.pt")
    checkpoint = load_state_dict_checkpoint(path, str(arch))
    assert checkpoint.model.model[0].conv.out_channels == 32


@pytest.mark.parametrize("activation", ["nn.SiLU()", "torch.nn.ReLU()", "nn.LeakyReLU(0.2)"])
def test_the_activation_is_the_tables(table: Path, tmp_path: Path, activation: str) -> None:
    rows = yaml.safe_load(table.read_text())
    built = f"torch.{activation.removeprefix('torch.')}"
    network = DetectionModel(rows | {"activation": built}, verbose=False).eval()
    table.write_text(yaml.safe_dump(rows | {"activation": activation}))
    by_table = load_state_dict_checkpoint(
        saved(network.state_dict(), tmp_path / "state.pt"), str(table)
    )
    whole = load_checkpoint(saved({"model": network}, tmp_path / "whole.pt"))
    x = torch.rand(1, 3, 32, 64)
    with torch.no_grad():
        expected = network(x)[0][0].numpy()
    np.testing.assert_array_equal(by_table.predict(x.numpy()), expected)
    np.testing.assert_array_equal(whole.predict(x.numpy()), expected)


def test_differences_are_listed_with_their_shapes(
    network: DetectionModel, table: Path, tmp_path: Path
) -> None:
    state = network.state_dict()
    del state["model.0.bn.weight"]
    state["model.2.extra.weight"] = torch.zeros(2, 3)
    state["model.1.conv.weight"] = torch.zeros(32, 16, 1, 1)
    path = saved(state, tmp_path / "state.pt")
    with pytest.raises(ModelUnsupported) as caught:
        load_state_dict_checkpoint(path, str(table))
    said = str(caught.value)
    assert "1 missing: model.0.bn.weight (16,)" in said
    assert "1 unexpected: model.2.extra.weight (2, 3)" in said
    assert "1 of another shape: model.1.conv.weight is (32, 16, 1, 1), not (32, 16, 3, 3)" in said
    assert "\n" not in said


def test_only_the_first_differences_are_listed_in_the_order_of_layers(
    network: DetectionModel, tmp_path: Path
) -> None:
    path = saved(network.state_dict(), tmp_path / "state.pt")
    with pytest.raises(ModelUnsupported, match=r"\d{3} missing: ") as caught:
        load_state_dict_checkpoint(path, "yolov8n-fla")
    missing = str(caught.value).split("missing: ")[1].split("; ")[0]
    assert missing.endswith(", ...")
    numbers = [int(n) for n in re.findall(r"model\.(\d+)\.", missing)]
    assert len(numbers) == 5
    assert numbers == sorted(numbers)


def test_parameters_of_a_fused_model_are_told(
    network: DetectionModel, table: Path, tmp_path: Path
) -> None:
    path = saved(network.fuse(verbose=False).state_dict(), tmp_path / "state.pt")
    with pytest.raises(ModelUnsupported, match=r"before model.fuse\(\) is called"):
        load_state_dict_checkpoint(path, str(table))


def test_names_have_to_be_as_many_as_classes(
    network: DetectionModel, table: Path, tmp_path: Path
) -> None:
    path = saved(network.state_dict(), tmp_path / "state.pt")
    with pytest.raises(ModelUnsupported, match="head has 2 classes, the names are 3: a, b, c"):
        load_state_dict_checkpoint(path, str(table), ("a", "b", "c"))


def test_the_given_names_go_before_the_tables(
    network: DetectionModel, table: Path, tmp_path: Path
) -> None:
    path = saved(network.state_dict(), tmp_path / "state.pt")
    table.write_text(table.read_text() + "\nnames: {0: cat, 1: dog}\n")
    assert load_state_dict_checkpoint(path, str(table)).class_names == ("cat", "dog")
    assert load_state_dict_checkpoint(path, str(table), ("a", "b")).class_names == ("a", "b")


def test_a_whole_model_needs_no_arch(repo_dir: Path) -> None:
    path = repo_dir / "weights" / "yolov8n-fla-bccd.pt"
    with pytest.raises(ModelUnsupported, match="leave --arch out"):
        load_state_dict_checkpoint(path, "yolov8n-fla")


def test_a_command_among_parameters_is_refused(tmp_path: Path, table: Path) -> None:
    path = saved({"model.0.conv.weight": Calls(eval, "1")}, tmp_path / "hostile.pt")
    with pytest.raises(CheckpointRefused, match=r"it asks for builtins\.eval,"):
        load_state_dict_checkpoint(path, str(table))


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"backbone.0.weight": torch.zeros(1)}, "backbone.0.weight is not named as YOLOv8's"),
        ({"model.0.conv.weight": torch.zeros(1)}, "no detection head"),
        ({"model.0.x": torch.zeros(1), "module.0.x": torch.ones(1)}, "it holds parameters twice"),
        ({"model.9.cv4.0.weight": torch.zeros(1)}, "a pose, segmentation or oriented-box head"),
        ({"model.9.one2one_cv3.0.weight": torch.zeros(1)}, "an end-to-end head"),
        ({"model.0.conv.weight": 3}, "a file of parameters by name is expected"),
        ([torch.zeros(1)], "a file of parameters by name is expected"),
    ],
)
def test_other_parameters_are_said_to_be_others(
    tmp_path: Path, table: Path, state: Any, said: str
) -> None:
    with pytest.raises(ModelUnsupported, match=said):
        load_state_dict_checkpoint(saved(state, tmp_path / "state.pt"), str(table))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"backbone": None}, "no lists `backbone` and `head`"),
        ({"activation": "__import__('os').system('true')"}, "activation .* is none of"),
        ({"backbone": [[-1, 1, "C3k2", [64]]]}, "row 0 is C3k2, which is none of Conv, C2f"),
        ({"backbone": [[-1, 1, "torchvision.ops.x", []]]}, "row 0 is torchvision.ops.x, which is"),
        ({"backbone": [[-1, 1, "Conv"]]}, "row 0 is not"),
        ({"backbone": [[-1, 2, "FLAttention", []]]}, "row 0 repeats FLAttention 2 times"),
        ({"backbone": [[-1, 1, "Conv", ["wide"]]]}, "the table cannot be built"),
        (
            TABLE | {"backbone": [*TABLE["backbone"][:4], [-1, 1, "FLABlock", [32, 20, 5]]]},
            "cannot be built: dim 32 is not a multiple of num_heads 5",
        ),
    ],
)
def test_a_table_that_cannot_be_built_says_why(
    network: DetectionModel, table: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    path = saved(network.state_dict(), tmp_path / "state.pt")
    table.write_text(yaml.safe_dump(yaml.safe_load(table.read_text()) | change))
    with pytest.raises(ModelUnsupported, match=said) as caught:
        load_state_dict_checkpoint(path, str(table))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arch", "said"),
    [
        ("yolov8q", r"unknown architecture 'yolov8q'; there are .*yolov8n-fla.*path of a YAML"),
        ("nowhere.yaml", r"nowhere\.yaml: No such file"),
    ],
)
def test_an_architecture_that_is_none_is_named(
    network: DetectionModel, tmp_path: Path, arch: str, said: str
) -> None:
    path = saved(network.state_dict(), tmp_path / "state.pt")
    with pytest.raises(ModelUnsupported, match=said):
        load_state_dict_checkpoint(path, arch)


def test_an_attention_that_is_not_the_published_one_is_listed(tmp_path: Path) -> None:
    network = small_network(nn.Linear(32, 32))
    rows: dict[str, Any] = deepcopy(TABLE)
    rows["backbone"][4] = [-1, 1, "FLAttention", []]
    arch = tmp_path / "mine.yaml"
    arch.write_text(yaml.safe_dump(rows))
    path = saved(network.state_dict(), tmp_path / "state.pt")
    with pytest.raises(ModelUnsupported, match=r"model\.4 is not .*'weight': \(32, 32\)"):
        load_state_dict_checkpoint(path, str(arch))
