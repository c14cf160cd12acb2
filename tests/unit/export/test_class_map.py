from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from ultralytics.nn.modules import C2f

from export.attention.table import TAKE_OVER
from export.errors import CheckpointRefused, ModelUnsupported
from export.sources.checkpoint import load_checkpoint
from export.sources.class_map import read_class_map
from model.attention.focused_linear import C2fFLA, FocusedLinearAttention
from tests.support.forks import (
    ATTENTION,
    Calls,
    Fork,
    check_predictions,
    renamed,
    saved,
    small_network,
)

FLA = "my_fork.nn.attn.FLA"


@pytest.fixture
def unknown(fork: Fork, tmp_path: Path) -> Path:
    """A network with one layer of an unknown class, which is the tutorials' attention."""
    layer = FocusedLinearAttention(32, num_heads=4, summed_keys=True)
    return fork.save(tmp_path / "fork.pt", layer, FLA)


@pytest.mark.parametrize("name", [FLA, "FLA"])
def test_a_map_names_a_class_in_full_or_without_its_module(unknown: Path, name: str) -> None:
    model = load_checkpoint(unknown, {name: "FocusedLinearAttention"}).model
    assert type(model.model[ATTENTION]) is FocusedLinearAttention


def test_a_full_name_goes_before_a_bare_one(unknown: Path) -> None:
    both = {"FLA": "Conv", FLA: "FLAttention"}
    assert type(load_checkpoint(unknown, both).model.model[ATTENTION]) is FocusedLinearAttention


def test_a_map_goes_before_the_tutorials_names(fork: Fork, tmp_path: Path) -> None:
    path = fork.save(tmp_path / "fork.pt", C2f(32, 32), "my_fork.C2f_FLA")
    assert type(load_checkpoint(path).model.model[ATTENTION]) is C2fFLA
    assert type(load_checkpoint(path, {"C2f_FLA": "C2f"}).model.model[ATTENTION]) is C2f


def test_a_mapped_layer_of_ultralytics_computes_what_it_did(fork: Fork, tmp_path: Path) -> None:
    network = small_network().eval()
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected = network(x)[0]
    for index in (0, 1):
        fork.own(network.model[index], "my_fork.ConvBNAct")
    fork.own(network.model[2].m[0], "my_fork.Narrow")
    path = saved({"model": network}, tmp_path / "fork.pt")
    fork.leave()
    mapped = load_checkpoint(path, {"ConvBNAct": "Conv", "my_fork.Narrow": "Bottleneck"})
    np.testing.assert_array_equal(mapped.predict(x.numpy()), expected[0].numpy())


@pytest.mark.parametrize("imgsz", [160, 320])
def test_a_tutorial_under_other_names_gives_with_a_map_what_its_fork_gave(
    tmp_path: Path, shared_dir: Path, imgsz: int
) -> None:
    theirs = "ultralytics.nn.modules.FocusLinearAttention."
    names = {
        f"{theirs}C2f_FLA": "my_fork.Outer",
        f"{theirs}Bottleneck_FLA": "my_fork.Middle",
        f"{theirs}FocusedLinearAttention": "my_fork.Inner",
    }
    tutorial = shared_dir / "checkpoints" / "tutorial_c2f_fla_neck.pt"
    class_map = {new: old.removeprefix(theirs) for old, new in names.items()}
    checkpoint = load_checkpoint(renamed(tutorial, names, tmp_path / "fork.pt"), class_map)
    check_predictions(checkpoint.predict, tutorial, imgsz)


def test_an_unknown_layer_on_the_right_is_named_with_those_there_are(unknown: Path) -> None:
    with pytest.raises(ModelUnsupported, match=r"FLA: Atention, which is none of .*C2f_FLA, Conc"):
        load_checkpoint(unknown, {FLA: "Atention"})


def test_a_line_that_nothing_answers_to_is_an_error(unknown: Path) -> None:
    """Otherwise a misspelt line would be dropped in silence."""
    with pytest.raises(ModelUnsupported, match=rf"the map has FLa, the file names {FLA}"):
        load_checkpoint(unknown, {"FLa": "FocusedLinearAttention"})


def test_a_class_that_is_known_cannot_be_made_another(unknown: Path) -> None:
    known = "ultralytics.nn.modules.conv.Conv"
    with pytest.raises(ModelUnsupported, match="is known without a map"):
        load_checkpoint(unknown, {FLA: "FLAttention", known: "C2f"})


@pytest.mark.parametrize("kind", ["Conv", "Bottleneck", "C2f_FLA", "Detect", "Linear"])
def test_a_map_to_a_layer_that_it_is_not_is_one_line(unknown: Path, kind: str) -> None:
    with pytest.raises((ModelUnsupported, CheckpointRefused)) as caught:
        load_checkpoint(unknown, {FLA: kind})
    assert "\n" not in str(caught.value)
    assert str(unknown) in str(caught.value)


@pytest.mark.parametrize("function", ["posix.system", "builtins.eval", "builtins.exec"])
def test_a_map_makes_no_function_callable(tmp_path: Path, function: str) -> None:
    trace = tmp_path / "trace"
    code = f"__import__('pathlib').Path({str(trace)!r}).touch()"
    path = saved({"model": Calls(eval, code)}, tmp_path / "hostile.pt")
    hostile = renamed(path, {"__builtin__.eval": function}, tmp_path / "renamed.pt")
    with pytest.raises(CheckpointRefused, match=rf"refused: it (calls|asks for) {function}[;,]"):
        load_checkpoint(hostile, {function: "Conv"})
    assert not trace.exists()
    torch.load(path, weights_only=False)  # the file does what the test says it would
    assert trace.exists()


def test_a_map_is_read_from_yaml(tmp_path: Path) -> None:
    path = tmp_path / "map.yaml"
    path.write_text("# what my fork calls them\nmy_fork.nn.attn.FLA: FocusedLinearAttention\n")
    assert read_class_map(path) == {FLA: "FocusedLinearAttention"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a map has lines"),
        ("- my_fork.FLA", "a map has lines"),
        ("my_fork.FLA: 3", "my_fork.FLA: 3 does not map"),
        ("a: [b", "not a YAML file"),
        ("!!python/object/apply:os.system ['true']", "not a YAML file"),
    ],
)
def test_what_is_no_map_is_said_to_be_none(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "map.yaml"
    path.write_text(text)
    with pytest.raises(ModelUnsupported, match=said) as caught:
        read_class_map(path)
    assert "\n" not in str(caught.value)


def test_a_missing_map_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelUnsupported, match=r"no\.yaml: No such file"):
        read_class_map(tmp_path / "no.yaml")


def test_a_forks_network_class_can_be_mapped(fork: Fork, tmp_path: Path) -> None:
    network = small_network()
    fork.own(network, "my_fork.tasks.FLADetectionModel")
    path = saved({"model": network}, tmp_path / "fork.pt")
    fork.leave()
    with pytest.raises(ModelUnsupported, match="FLADetectionModel: DetectionModel`"):
        load_checkpoint(path)
    checkpoint = load_checkpoint(path, {"FLADetectionModel": "DetectionModel"})
    assert isinstance(checkpoint.model.model[0], nn.Module)
    assert checkpoint.class_names == ("a", "b")


def test_the_guide_names_every_layer_that_is_recognised(repo_dir: Path) -> None:
    guide = (repo_dir / "docs" / "bring-your-checkpoint.md").read_text()
    assert all(f"`{name}`" in guide for name in TAKE_OVER)
