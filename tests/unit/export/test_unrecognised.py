"""What is said of a checkpoint with classes that are not known here."""

import copyreg
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from ultralytics.nn.modules import C2PSA, C2f
from ultralytics.nn.modules.block import C3k
from ultralytics.nn.tasks import (
    ClassificationModel,
    DetectionModel,
    OBBModel,
    PoseModel,
    SegmentationModel,
)

from export.errors import CheckpointRefused, ExportError, ModelUnsupported
from export.sources.checkpoint import load_checkpoint
from model.allow_list import ForeignLayer
from model.attention.focused_linear import FocusedLinearAttention
from model.unpickle import shell
from tests.support.forks import ATTENTION, Calls, Fork, renamed, saved, small_network

FLA = "my_fork.nn.attn.FLA"


def said_of(path: Path) -> ExportError:
    with pytest.raises(ExportError) as caught:
        load_checkpoint(path)
    return caught.value


def test_an_unknown_layer_is_listed_with_its_path_parameters_and_what_to_try(
    fork: Fork, tmp_path: Path
) -> None:
    path = fork.save(tmp_path / "fork.pt", FocusedLinearAttention(32, num_heads=4), FLA)
    error = said_of(path)
    assert isinstance(error, ModelUnsupported)
    first, line = str(error).splitlines()
    assert first == f"{path}: 1 layer is not recognised:"
    assert line.startswith(f"- model.{ATTENTION}: {FLA}, parameters scale (1, 1, 32), ")
    assert "kv.weight (64, 32)" in line
    assert f"`{FLA}: FocusedLinearAttention`" in line


def test_every_class_has_one_line_with_the_paths_of_all_its_layers(
    fork: Fork, tmp_path: Path
) -> None:
    network = small_network(fork.own(nn.Linear(3, 5), "my_fork.Odd"))
    fork.own(network.model[2].m[0], "my_fork.Narrow")
    fork.own(network.model[0], "my_fork.Act")
    fork.own(network.model[1], "my_fork.Act")
    path = saved({"model": network}, tmp_path / "fork.pt")
    fork.leave()
    lines = str(said_of(path)).splitlines()
    assert lines[0].endswith("4 layers are not recognised:")
    found = {line.split(",")[0] for line in lines[1:]}
    text = "\n".join(lines)
    assert len(lines) == 4, found
    assert "- model.0, model.1: my_fork.Act, parameters conv.weight (16, 3, 3, 3)" in text
    assert "`my_fork.Act: Conv`" in text
    assert "- model.2.m.0: my_fork.Narrow" in text
    assert "`my_fork.Narrow: Bottleneck`" in text
    assert re.search(r"model\.4: my_fork\.Odd, .*its code would have to be added", text)


def test_layers_of_yolo11_are_not_said_to_look_like_known_ones(fork: Fork, tmp_path: Path) -> None:
    network = small_network(fork.own(C2PSA(128, 128), "my_fork.Psa"))
    fork.own(network.model[ATTENTION].m[0], "my_fork.PsaBlock")
    fork.own(network.model[0], "my_fork.Act")
    network.model[2] = fork.own(C3k(64, 64), "my_fork.Narrow")
    path = saved({"model": network}, tmp_path / "fork.pt")
    fork.leave()
    hints = dict(re.findall(r": (my_fork\.\w+), parameters .*; (.*)", str(said_of(path))))
    assert "code would have to be added" in hints["my_fork.Psa"]
    assert "code would have to be added" in hints["my_fork.Narrow"]
    assert "look like Conv" in hints["my_fork.Act"]


def test_layers_inside_unknown_layers_are_told_apart(tmp_path: Path, shared_dir: Path) -> None:
    theirs = "ultralytics.nn.modules.FocusLinearAttention."
    names = {
        f"{theirs}C2f_FLA": "my_fork.Outer",
        f"{theirs}Bottleneck_FLA": "my_fork.Middle",
        f"{theirs}FocusedLinearAttention": "my_fork.Inner",
    }
    tutorial = shared_dir / "checkpoints" / "tutorial_c2f_fla_neck.pt"
    lines = str(said_of(renamed(tutorial, names, tmp_path / "fork.pt"))).splitlines()
    assert [re.findall(r"`(.*)`", line) for line in lines[1:]] == [
        ["my_fork.Outer: C2f_FLA"],
        ["my_fork.Middle: Bottleneck_FLA"],
        ["my_fork.Inner: FocusedLinearAttention"],
    ]
    assert "- model.12, model.15, model.18, model.21: my_fork.Outer" in lines[1]
    assert "q.weight" not in lines[1]  # those are the inner layer's own


def test_the_tutorials_layers_around_an_unknown_one_are_not_listed(
    tmp_path: Path, shared_dir: Path
) -> None:
    theirs = "ultralytics.nn.modules.FocusLinearAttention.FocusedLinearAttention"
    tutorial = shared_dir / "checkpoints" / "tutorial_c2f_fla_neck.pt"
    path = renamed(tutorial, {theirs: "my_fork.Inner"}, tmp_path / "fork.pt")
    first, line = str(said_of(path)).splitlines()
    assert first.endswith("4 layers are not recognised:")
    assert line.startswith("- model.12.m.0.FLA, model.15.m.0.FLA, ")


@pytest.mark.parametrize("name", ["evil.Conv", "evil.nn.modules.conv.Conv", "torch.nn.Conv.Conv"])
def test_a_class_that_only_has_a_known_name_is_not_taken_for_the_known_one(
    fork: Fork, tmp_path: Path, name: str
) -> None:
    known = saved({"model": small_network()}, tmp_path / "known.pt")
    path = renamed(known, {"ultralytics.nn.modules.conv.Conv": name}, tmp_path / "evil.pt")
    assert f" {name}, " in str(said_of(path))


@pytest.mark.parametrize(
    "name", ["posix.system", "os.system", "builtins.eval", "subprocess.run", "torch.hub.load"]
)
def test_a_function_in_a_layers_place_is_refused_by_its_name(
    fork: Fork, tmp_path: Path, name: str
) -> None:
    path = fork.save(tmp_path / "fork.pt", FocusedLinearAttention(32, num_heads=4), FLA)
    error = said_of(renamed(path, {FLA: name}, tmp_path / "evil.pt"))
    assert isinstance(error, CheckpointRefused)
    assert f"it asks for {name}, " in str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize("where", ["beside", "attribute", "hook", "state of a layer"])
def test_a_command_beside_an_unknown_layer_is_what_the_message_names(
    fork: Fork, tmp_path: Path, where: str
) -> None:
    trace = tmp_path / "trace"
    command = Calls(os.system, f"touch {trace}")
    network = small_network(fork.own(FocusedLinearAttention(32, num_heads=4), FLA))
    layer = network.model[ATTENTION]
    content: dict[str, Any] = {"model": network}
    if where == "beside":
        content["date"] = command
    elif where == "attribute":
        layer.extra = {"nested": [command]}
    elif where == "hook":
        layer._forward_hooks[0] = command
    else:
        layer.__dict__["state"] = (command,)
    path = saved(content, tmp_path / "hostile.pt")
    error = said_of(path)
    assert isinstance(error, CheckpointRefused)
    assert "it asks for posix.system, " in str(error)
    assert not trace.exists()
    torch.load(path, weights_only=False)  # the file does what the test says it would
    assert trace.exists()


@pytest.mark.parametrize("arguments", [(), ("touch",), (1, {"a": 2})])
@pytest.mark.parametrize("where", ["beside", "layer"])
def test_an_unknown_class_that_is_called_is_refused(
    fork: Fork, tmp_path: Path, arguments: tuple[Any, ...], where: str
) -> None:
    call = Calls(fork.kind(FLA, object), *arguments)
    network = small_network()
    if where == "layer":
        network.model[ATTENTION].extra = call
    content = {"model": network, "extra": call if where == "beside" else None}
    path = tmp_path / "hostile.pt"
    torch.save(content, path)
    fork.leave()
    error = said_of(path)
    assert isinstance(error, CheckpointRefused)
    assert f"it calls {FLA};" in str(error)


def test_an_unknown_class_made_with_arguments_is_refused(fork: Fork, tmp_path: Path) -> None:
    """Beside calls, pickles have an opcode that makes instances."""

    def made_with_an_argument(layer: nn.Module, _: object) -> tuple[Any, ...]:
        return vars(copyreg)["__newobj__"], (type(layer), "argument"), layer.__dict__

    network = small_network(fork.own(nn.Linear(3, 5), FLA))
    setattr(type(network.model[ATTENTION]), "__reduce_ex__", made_with_an_argument)  # noqa: B010
    path = saved({"model": network}, tmp_path / "hostile.pt")
    fork.leave()
    assert f"it calls {FLA};" in str(said_of(path))


def test_an_unknown_class_that_is_no_layer_is_refused(fork: Fork, tmp_path: Path) -> None:
    network = small_network()
    network.model[ATTENTION].extra = fork.kind(FLA)
    path = saved({"model": network}, tmp_path / "hostile.pt")
    fork.leave()
    error = said_of(path)
    assert isinstance(error, CheckpointRefused)
    assert f"it asks for {FLA}, " in str(error)


def test_a_filled_layer_cannot_be_run_while_the_file_is_read(fork: Fork, tmp_path: Path) -> None:
    """torch lets a pickle call anything through this function of its own."""
    rebuild = torch._tensor._rebuild_from_type_v2
    network = small_network()
    call = Calls(rebuild, network, torch.Tensor, (torch.zeros(1, 3, 32, 32),), None)
    path = saved({"model": network, "extra": call}, tmp_path / "hostile.pt")
    assert "it calls ultralytics.nn.tasks.DetectionModel;" in str(said_of(path))

    unknown = small_network(fork.own(nn.Linear(3, 5), FLA)).model[ATTENTION]
    call = Calls(rebuild, unknown, torch.Tensor, (torch.zeros(1, 3),), None)
    path = saved({"model": network, "extra": call}, tmp_path / "unknown.pt")
    fork.leave()
    assert f"it calls {FLA};" in str(said_of(path))


def test_a_shell_is_neither_constructed_nor_called() -> None:
    stand_in = shell(ForeignLayer, "a.B")
    make: Any = stand_in.__new__
    filled = make(stand_in)
    for call in (stand_in, filled, lambda: make(stand_in, 1), lambda: stand_in(1)):
        with pytest.raises(Exception, match=r"calls a\.B"):
            call()


def test_names_in_a_message_cannot_steer_a_terminal(fork: Fork, tmp_path: Path) -> None:
    path = fork.save(tmp_path / "fork.pt", FocusedLinearAttention(32, num_heads=4), FLA)
    said = str(said_of(renamed(path, {FLA: "my\x1b[2Jfork.FLA"}, tmp_path / "evil.pt")))
    assert "my?[2Jfork.FLA" in said
    assert "\x1b" not in said


def test_damaged_parameters_of_an_unknown_layer_are_refused(fork: Fork, tmp_path: Path) -> None:
    network = small_network(fork.own(nn.Linear(3, 5), FLA))
    network.model[ATTENTION].__dict__["_parameters"] = ["no", "table"]
    path = saved({"model": network}, tmp_path / "fork.pt")
    fork.leave()
    assert isinstance(said_of(path), CheckpointRefused)


@pytest.mark.parametrize(
    ("kind", "table", "task"),
    [
        (SegmentationModel, "yolov8n-seg.yaml", "segmentation"),
        (PoseModel, "yolov8n-pose.yaml", "pose"),
        (OBBModel, "yolov8n-obb.yaml", "oriented-box"),
        (ClassificationModel, "yolov8n-cls.yaml", "classification"),
    ],
)
def test_models_of_other_tasks_are_called_by_their_task(
    tmp_path: Path, kind: type, table: str, task: str
) -> None:
    path = saved({"model": kind(table, nc=2, verbose=False)}, tmp_path / "other.pt")
    error = said_of(path)
    assert isinstance(error, ModelUnsupported)
    assert f"this is a {task} model; only YOLOv8 detection is exported" in str(error)


def test_a_head_that_chooses_its_own_detections_is_said_to_be_yolov10s(tmp_path: Path) -> None:
    path = saved({"model": DetectionModel("yolov10n.yaml", verbose=False)}, tmp_path / "v10.pt")
    assert "its head, v10Detect, chooses its own detections" in str(said_of(path))


def test_layers_of_other_families_are_listed(tmp_path: Path) -> None:
    path = saved({"model": DetectionModel("yolo11n.yaml", verbose=False)}, tmp_path / "11.pt")
    said = str(said_of(path))
    assert "ultralytics.nn.modules.block.C3k2" in said
    assert "ultralytics.nn.modules.block.C2PSA" in said


def test_a_c2f_of_another_name_is_recognised_by_its_parameters(fork: Fork, tmp_path: Path) -> None:
    path = fork.save(tmp_path / "fork.pt", C2f(32, 32, 2), "my_fork.Split")
    assert "`my_fork.Split: C2f`" in str(said_of(path))
