"""What the rest of `model` has to know of an attention."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Row:
    """How a block is built from its row in an architecture file.

    Attributes:
        stand_in: the row's arguments to the name and arguments of a built-in layer with the same
            channels, which ultralytics' parser knows.
        build: that layer, and the row's arguments, to the block.
        repeatable: whether the block repeats something inside; others stand in a row once.
    """

    stand_in: Callable[[list[Any]], tuple[str, list[Any]]]
    build: Callable[[Any, list[Any]], nn.Module]
    repeatable: bool


@dataclass(frozen=True)
class Mechanism:
    """An attention and the layers around it.

    Attributes:
        module: the attention itself; its output projection is called `proj`.
        layers: classes that a checkpoint may name, `module` among them.
        former_modules: where these classes were before; checkpoints name them there.
        tutorial_names: bare class names of the layers that published tutorials paste into
            ultralytics, under any module path.
        rows: the blocks by their names in architecture files.
        start: sets the new attentions of a layer, at least one, when the weights around them come
            from a network without them; says how it starts, or nothing where it is left random.
    """

    module: type[nn.Module]
    layers: tuple[type[nn.Module], ...]
    former_modules: tuple[str, ...]
    tutorial_names: tuple[str, ...]
    rows: Mapping[str, Row]
    start: Callable[[nn.Module, Sequence[Any]], str]
