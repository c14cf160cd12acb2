"""A checkpoint that holds more than a network is refused by every command that reads one."""

import os
import platform
import re
from collections import OrderedDict
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import IterableSimpleNamespace
from ultralytics.utils.loss import v8DetectionLoss

from export.__main__ import main as export
from model.__main__ import main as model
from tests.support.forks import TABLE, Fork, saved

FORK = Fork()
# Of layers that every command knows.

PLAIN = TABLE | {"backbone": TABLE["backbone"][:4], "head": [[[2, 3], 1, "Detect", ["nc"]]]}
REFUSED = (
    r"(refused: |not a complete model: |its activation is none of |1 layer is not recognised:)"
)


class Calls:
    """Pickles as a call of a function with arguments."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def network() -> DetectionModel:
    plain = DetectionModel(deepcopy(PLAIN), verbose=False)
    plain.names = {0: "a", 1: "b"}
    return plain


def nested(depth: int) -> Any:
    value: Any = IterableSimpleNamespace()
    for _ in range(depth):
        value = IterableSimpleNamespace(inner=value)
    return value


def hiding() -> Any:
    hooks: Any = OrderedDict({0: set})
    hooks.values = set
    return hooks


def namespace_to_be_filled(state: object) -> Any:
    """An object that is built from a state which is no dict."""
    return type("State", (), {"__reduce__": lambda _: (IterableSimpleNamespace, (), state)})()


# What a file has beside its network.
BESIDE: dict[str, Callable[[Path], Any]] = {
    "a command": lambda mark: Calls(os.system, f"touch {mark}"),
    "a call without arguments": lambda _: Calls(platform.uname),
    "a call of numpy": lambda _: Calls(np.zeros, 3),
    "a call of pathlib": lambda _: Calls(Path.cwd),
    "a call of a loss": lambda _: Calls(v8DetectionLoss, network()),
    "a call of a layer": lambda _: Calls(nn.Identity),
    "a function": lambda _: eval,
    "a state that is no dict": lambda _: namespace_to_be_filled(("no", "dict")),
}
# What is changed in the network itself.
INSIDE: dict[str, Callable[[Any], Any]] = {
    "a class in a layer": lambda n: setattr(n.model[3], "extra", nn.Conv2d),
    "a list of layers": lambda n: setattr(n.model[3], "extra", [nn.Identity()]),
    "a layer beside the children": lambda n: n.model[3].__dict__.update(extra=nn.Identity()),
    "a hook": lambda n: n.model[3]._forward_hooks.update({0: nn.Conv2d}),
    "a hook that hides": lambda n: n.model[1].__dict__.update(_forward_hooks=hiding()),
    "a method of a tensor": lambda n: setattr(n.model[0].conv.weight, "detach", OrderedDict),
    "forward": lambda n: n.__dict__.update(forward=nn.Conv2d),
    "state_dict": lambda n: n.__dict__.update(state_dict=nn.Conv2d),
    "an activation": lambda n: n.yaml.update(activation="exec('') or nn.ReLU()"),
    "an unknown class inside": lambda n: FORK.own(n.model[2].m[0], "my_fork.Narrow"),
    "a deep namespace": lambda n: n.__dict__.update(args=nested(100)),
    "a number for a name": lambda n: n.model[1]._parameters.update({3: nn.Parameter()}),
    "a head without classes": lambda n: n.model[-1].__dict__.pop("nc"),
}


@pytest.fixture
def hostile(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A checkpoint of that form; where it runs something, it makes the file `mark`."""
    plain, form = network(), request.param
    content = {"model": plain, "epoch": -1, "train_args": {"epochs": 1}}
    if form in BESIDE:
        content["extra"] = BESIDE[form](tmp_path / "mark")
    else:
        INSIDE[form](plain)
    path = saved(content, tmp_path / "hostile.pt")
    FORK.leave()
    return path


COMMANDS = {
    "export": ["{hostile}", "-o", "{folder}/a.onnx", "--imgsz", "64"],
    "val": ["val", "{hostile}", "--data", "{data}"],
    "predict": ["predict", "{hostile}", "{folder}/a.jpg", "--output", "{folder}/out"],
    "pretrained": ["train", "--pretrained", "{hostile}"],
    "resume initial.pt": ["train", "--resume"],
    "resume stage_1/weights/last.pt": ["train", "--resume"],
    "resume stage_1/weights/best.pt": ["train", "--resume"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("hostile", [*BESIDE, *INSIDE], indirect=True)
def test_every_command_refuses_it(
    hostile: Path, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    data, arch, run = tmp_path / "data.yaml", tmp_path / "yolov8n-small.yaml", tmp_path / "run"
    data.write_text("train: images\nval: images\nnames: [a, b]\n")
    arch.write_text(yaml.safe_dump(PLAIN | {"scales": {"n": [1, 1, 64]}}))
    before, _, place = command.partition("resume ")
    if place:
        honest = {"ema": network(), "epoch": 0, "train_args": {"epochs": 2}}
        (run / "stage_1" / "weights").mkdir(parents=True)
        saved(honest, run / "stage_1" / "weights" / "last.pt")
        if place == "initial.pt":
            (run / "stage_1" / "weights" / "last.pt").unlink()
        hostile = hostile.replace(run / place)
    files = {"hostile": hostile, "folder": tmp_path, "data": data}
    arguments = [argument.format(**files) for argument in COMMANDS[command]]
    if arguments[0] == "train":
        arguments += ["--data", str(data), "--arch", str(arch), "--output", str(run)]
        arguments += ["--device", "cpu", "--imgsz", "64", "--epochs", "1"]
    assert (export if before == "export" else model)(arguments) == 2
    error = capsys.readouterr().err
    assert hostile.name in error
    assert re.search(REFUSED, error), error
    assert not (tmp_path / "mark").exists()


def test_the_file_with_a_command_does_what_the_test_says_it_would(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    path = saved({"extra": BESIDE["a command"](mark)}, tmp_path / "hostile.pt")
    torch.load(path, weights_only=False)
    assert mark.exists()


@pytest.mark.parametrize("hostile", ["a command"], indirect=True)
def test_a_recipe_that_names_one_does_not_have_it_run(hostile: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    data, recipe = tmp_path / "data.yaml", tmp_path / "recipe.yaml"
    data.write_text("train: images\nval: images\nnames: [a, b]\n")
    recipe.write_text(yaml.safe_dump({"stages": [{"resume": str(hostile), "device": "cpu"}]}))
    command = ["train", "--data", str(data), "--recipe", str(recipe)]
    assert model([*command, "--output", f"{tmp_path}/run"]) == 2
    assert not (tmp_path / "mark").exists()
