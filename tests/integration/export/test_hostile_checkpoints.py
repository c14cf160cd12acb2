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
from tests.support.forks import PLAIN, Calls, Fork, saved

FORK = Fork()


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


def touch(mark: Path) -> str:
    """Code that makes a file."""
    return f"__import__('pathlib').Path({str(mark)!r}).touch()"


# What a file has beside its network, and what is said of it.
BESIDE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a command": (lambda mark: Calls(os.system, f"touch {mark}"), r"asks for posix\.system,"),
    "code": (lambda mark: Calls(eval, touch(mark)), r"asks for builtins\.eval,"),
    "a call without arguments": (lambda _: Calls(platform.uname), r"asks for platform\.uname,"),
    "a call of numpy": (lambda _: Calls(np.zeros, 3), r"(calls|asks for) numpy\.zeros[;,]"),
    "a call of pathlib": (lambda _: Calls(Path.cwd), "asks for "),
    "a call of a loss": (lambda _: Calls(v8DetectionLoss, network()), "calls ultralytics"),
    "a call of a layer": (lambda _: Calls(nn.Identity), "calls torch"),
    # ultralytics' model evaluates the activation in its layer table as code.
    "a call of a model": (
        lambda mark: Calls(
            DetectionModel,
            PLAIN | {"activation": f"{touch(mark)} or torch.nn.ReLU()"},
        ),
        r"calls ultralytics\.nn\.tasks\.DetectionModel",
    ),
    "a function": (lambda _: eval, r"asks for builtins\.eval,"),
    "a state that is no dict": (lambda _: namespace_to_be_filled(("no", "dict")), "calls "),
}


def replaced(method: str) -> Callable[[Any], Any]:
    """The network has a class in place of a method."""
    return lambda network: network.__dict__.update({method: nn.Conv2d})


CARRIES = r"layer 'model\.[0-3][.a-z]*' carries code"
INCOMPLETE = "not a complete model: "
# What is changed in the network itself.
INSIDE: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a class in a layer": (lambda n: setattr(n.model[3], "extra", nn.Conv2d), CARRIES),
    "a list of layers": (lambda n: setattr(n.model[3], "extra", [nn.Identity()]), CARRIES),
    "a layer beside the children": (
        lambda n: n.model[3].__dict__.update(extra=nn.Identity()),
        CARRIES,
    ),
    "a hook": (lambda n: n.model[3]._forward_hooks.update({0: nn.Conv2d}), CARRIES),
    "a hook that hides": (
        lambda n: n.model[1].__dict__.update(_forward_hooks=hiding()),
        CARRIES,
    ),
    "a method of a tensor": (
        lambda n: setattr(n.model[0].conv.weight, "detach", OrderedDict),
        CARRIES,
    ),
    **{
        method: (replaced(method), rf"calls .*DetectionModel\.{method};")
        for method in ("forward", "state_dict", "named_modules", "__setstate__")
    },
    "an activation": (
        lambda n: n.yaml.update(activation="exec('') or nn.ReLU()"),
        "its activation is none of ",
    ),
    "an unknown class inside": (
        lambda n: FORK.own(n.model[2].m[0], "my_fork.Narrow"),
        r"asks for my_fork\.Narrow,|1 layer is not recognised:",
    ),
    "a deep namespace": (lambda n: n.__dict__.update(args=nested(100)), INCOMPLETE),
    "a number for a name": (
        lambda n: n.model[1]._parameters.update({3: nn.Parameter()}),
        INCOMPLETE,
    ),
    "no table of parameters": (
        lambda n: n.model[2].__dict__.update(_parameters=("no", "table")),
        INCOMPLETE,
    ),
    "no table of buffers": (
        lambda n: n.model[2].__dict__.update(_buffers=("no", "table")),
        INCOMPLETE,
    ),
    "a head without classes": (lambda n: n.model[-1].__dict__.pop("nc"), INCOMPLETE),
    "a head without strides": (lambda n: n.model[-1].__dict__.pop("stride"), INCOMPLETE),
    "a head with a text for a number": (lambda n: setattr(n.model[-1], "nc", "2"), INCOMPLETE),
}


@pytest.fixture
def hostile(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A checkpoint of that form; where it runs something, it makes the file `mark`."""
    plain, form = network(), request.param
    content = {"model": plain, "epoch": -1, "train_args": {"epochs": 1}}
    if form in BESIDE:
        content["extra"] = BESIDE[form][0](tmp_path / "mark")
    else:
        INSIDE[form][0](plain)
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
@pytest.mark.parametrize(
    ("hostile", "words"),
    [(form, words) for form, (_, words) in (BESIDE | INSIDE).items()],
    indirect=["hostile"],
    ids=[*BESIDE, *INSIDE],
)
def test_every_command_refuses_it(
    hostile: Path, words: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
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
    assert re.search(words, error), error
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("form", ["a command", "code", "a call of a model"])
def test_the_file_does_what_the_test_says_it_would(form: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    path = saved({"extra": BESIDE[form][0](mark)}, tmp_path / "hostile.pt")
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
