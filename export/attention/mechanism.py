"""What the rest of `export` has to know of an attention."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Shapes = Mapping[str, tuple[int, ...]]
State = Mapping[str, Tensor]


@dataclass(frozen=True)
class TutorialRow:
    """A tutorial's layer in an architecture file, whose parameters came without it.

    Attributes:
        stand_in: the built-in layer with the same channels that is built in its place:
            `nn.Identity` without arguments, or one that takes the row's.
        take_over: that layer, used up, and the tutorial's parameters to our layer and the same
            parameters under its names.
    """

    stand_in: str
    take_over: Callable[[Any, State], tuple[nn.Module, State]]


@dataclass(frozen=True)
class Mechanism:
    """How an attention is recognised, and its form in an artifact.

    Attributes:
        module: the trained attention.
        export_form: that to a module which computes the same in operators that run fast.
        tutorial_layers: a filled layer of a tutorial to ours, by its bare class name; each raises
            whatever parameters make it raise that are not the published layer's.
        tutorial_rows: the same by name in an architecture file.
        recognise: whether parameters of these shapes are the attention's.
        attention, bottleneck, c2f: names among `tutorial_layers`, to propose for layers that look
            like it, or that hold it.
    """

    module: type[nn.Module]
    export_form: Callable[[Any], nn.Module]
    tutorial_layers: Mapping[str, Callable[[Any], nn.Module]]
    tutorial_rows: Mapping[str, TutorialRow]
    recognise: Callable[[Shapes], bool]
    attention: str
    bottleneck: str
    c2f: str
