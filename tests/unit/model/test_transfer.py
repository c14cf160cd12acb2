"""Starting from another network's layers: what is taken, and that nothing of a file is run."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from ultralytics.nn.tasks import DetectionModel

from model.attention.focused_linear import (
    MIXED_IN,
    C2fFLA,
    FLABlock,
    FocusedLinearAttention,
    start_near_identity,
)
from model.checkpoint import read_checkpoint, rebuild
from model.train import network
from model.transfer import transfer

LETTERS = tuple("abc")


def trained(arch: str, names: tuple[str, ...] = LETTERS) -> DetectionModel:
    """A network whose batch norms have seen something."""
    model = network(arch, names, seed=0)
    random = torch.Generator().manual_seed(1)
    for name, value in model.state_dict().items():
        if name.endswith(("running_mean", "bn.bias")):
            value.normal_(0, 0.1, generator=random)
        elif name.endswith(("running_var", "bn.weight")):
            value.uniform_(0.5, 2, generator=random)
    return model.eval()


def saved(path: Path, model: DetectionModel) -> Path:
    """A checkpoint as ultralytics writes it."""
    torch.save({"model": None, "ema": model, "epoch": 3}, path)
    return path


@torch.no_grad()
def outputs(model: DetectionModel) -> Tensor:
    """(1, 4 + classes, A) for one image that is not square."""
    x = torch.rand(1, 3, 96, 160, generator=torch.Generator().manual_seed(2))
    y: Tensor = model.eval()(x)[0]
    return y


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("plain") / "yolov8n.pt", trained("yolov8n"))


def test_a_network_with_an_attention_layer_starts_as_the_plain_one(plain: Path) -> None:
    model = network("yolov8n-fla", LETTERS, seed=7)
    before = outputs(model)
    report = transfer(read_checkpoint(plain), model)
    assert str(report) == "355 of 355 tensors from yolov8n.pt; new: model.10 FLABlock (identity)"
    expected = outputs(trained("yolov8n"))
    assert torch.equal(outputs(model), expected)
    assert not torch.allclose(before, expected)


def test_a_network_with_attention_inside_its_blocks_starts_nearly_as_the_plain_one(
    plain: Path,
) -> None:
    model = network("yolov8n-c2f-fla", LETTERS, seed=7)
    before = outputs(model)
    report = transfer(read_checkpoint(plain), model)
    assert (report.taken, report.total) == (355, 355)
    assert report.new == tuple(
        f"model.{i} C2fFLA (near identity: 6% attention)" for i in (12, 15, 18, 21)
    )
    expected = outputs(trained("yolov8n"))
    near, far = (outputs(model) - expected).abs().max(), (before - expected).abs().max()
    assert near < 0.02 * far


def test_near_identity_adds_a_share_of_the_attention_and_every_weight_learns() -> None:
    torch.manual_seed(0)
    attention = FocusedLinearAttention(32, num_heads=4).double()
    start_near_identity(attention)
    x = torch.randn(2, 32, 6, 9, dtype=torch.float64)
    y = attention(x)
    tokens = x.flatten(2).transpose(1, 2)
    q, k = attention.phi(attention.q(tokens)), attention.phi(attention.kv(tokens)[..., :32])
    o = attention.attend(q, k, attention.split_heads(tokens)).transpose(2, 3).reshape(x.shape)
    torch.testing.assert_close(y, x + MIXED_IN * o)
    y.square().sum().backward()
    for name, parameter in attention.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_the_head_keeps_its_own_classes(plain: Path) -> None:
    model = network("yolov8n-fla", tuple(map(str, range(80))), seed=7)
    report = transfer(read_checkpoint(plain), model)
    assert str(report) == (
        "319 of 355 tensors from yolov8n.pt; new: model.10 FLABlock (identity); "
        "not taken: head classification (3 classes there, 80 here)"
    )


def test_our_own_checkpoint_is_taken_whole_and_its_attention_left_by_a_plain_network(
    tmp_path: Path,
) -> None:
    source = read_checkpoint(saved(tmp_path / "ours.pt", trained("yolov8n-fla")))
    whole = network("yolov8n-fla", LETTERS, seed=7)
    assert str(transfer(source, whole)) == "365 of 365 tensors from ours.pt"
    assert torch.equal(outputs(whole), outputs(trained("yolov8n-fla")))

    bare = network("yolov8n", ("x", "y", "z"), seed=7)
    assert str(transfer(source, bare)) == (
        "355 of 355 tensors from ours.pt; not taken: FLABlock there at model.10, "
        "class names (there a, b, c; here x, y, z)"
    )


def test_a_state_dict_alone_is_enough(plain: Path, tmp_path: Path) -> None:
    bare = tmp_path / "weights.pt"
    torch.save(trained("yolov8n").state_dict(), bare)
    model = network("yolov8n-fla", LETTERS, seed=7)
    assert transfer(read_checkpoint(bare), model).taken == 355
    assert torch.equal(outputs(model), outputs(trained("yolov8n")))


@pytest.mark.parametrize(("there", "here"), [("yolov8s", "yolov8n-fla"), ("yolov8n", "yolov8s")])
def test_another_scale_is_refused_and_changes_nothing(
    there: str, here: str, tmp_path: Path
) -> None:
    source = read_checkpoint(saved(tmp_path / "there.pt", trained(there)))
    model = network(here, LETTERS, seed=7)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"only \d+% of the network's weights .* another scale"):
        transfer(source, model)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


@pytest.mark.parametrize("name", ["tutorial_flattention_layers.pt", "tutorial_c2f_fla_neck.pt"])
def test_the_tutorials_checkpoints_give_their_plain_layers(name: str, shared_dir: Path) -> None:
    source = read_checkpoint(shared_dir / "checkpoints" / name)
    model = network("yolov8n-fla", LETTERS, seed=7)
    report = transfer(source, model)
    assert (report.taken, report.total) == (355, 355)
    assert "attention" in str(report).lower()  # theirs, which was left
    with pytest.raises(ValueError, match=r"which this command does not know; `python -m export`"):
        rebuild(source)


@pytest.mark.parametrize("arch", ["yolov8n", "yolov8n-fla", "yolov8n-c2f-fla"])
def test_a_rebuilt_network_computes_what_the_saved_one_did(arch: str, tmp_path: Path) -> None:
    model = trained(arch)
    for module in model.modules():  # a trained one is not at its start
        if isinstance(module, FLABlock | C2fFLA):
            for parameter in module.parameters():
                torch.nn.init.normal_(parameter, std=0.1)
    again = rebuild(read_checkpoint(saved(tmp_path / "a.pt", model)))
    assert torch.equal(outputs(again), outputs(model))
    assert tuple(again.names.values()) == LETTERS


def test_a_table_in_the_form_of_the_first_releases_is_rebuilt(tmp_path: Path) -> None:
    """Those have the factors of their scale instead of all scales, and read "None" as text."""
    model = trained("yolov8n")
    table = {key: model.yaml[key] for key in ("backbone", "head")}
    table |= {"nc": 3, "depth_multiple": 0.33, "width_multiple": 0.25}
    table["head"][0][3] = ["None", 2, "nearest"]
    model.yaml = table
    again = rebuild(read_checkpoint(saved(tmp_path / "a.pt", model)))
    assert torch.equal(outputs(again), outputs(model))


def test_a_layer_table_names_only_layers(tmp_path: Path) -> None:
    model = trained("yolov8n")
    model.yaml["backbone"][0][2] = "attempt_load"
    with pytest.raises(ValueError, match="has layers attempt_load, which this command does not"):
        rebuild(read_checkpoint(saved(tmp_path / "a.pt", model)))


@pytest.mark.parametrize("content", [{"model": {}}, [1, 2], {"weight": torch.zeros(3)}])
def test_a_file_without_a_network_is_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="there is no YOLO network in it"):
        read_checkpoint(tmp_path / "a.pt")
