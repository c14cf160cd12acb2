"""Layers of published tutorials, taken over as ours.

People paste these classes into a copy of ultralytics, under any module path; a checkpoint names
them, and that copy is not here. So they are known by their class names, filled as empty layers,
and replaced by ours, which compute the same.
"""

from torch import nn

from export.attention.table import TAKE_OVER
from export.errors import ModelUnsupported
from model.allow_list import ForeignLayer
from model.registration import in_place_of


def take_over(model: nn.Module, path: str = "") -> None:
    """Replaces every foreign layer of a network, innermost first.

    Args:
        model: the network, or a part of it; changed in place.
        path: where the part is in the network, for messages.

    Raises:
        ModelUnsupported: a layer has other parameters than the class of its name; the message
            lists them.
    """
    for name, child in list(model.named_children()):
        where = f"{path}.{name}" if path else name
        take_over(child, where)
        if isinstance(child, ForeignLayer):
            try:
                ours = TAKE_OVER[child.foreign_name](child)
            except Exception as error:  # parameters that nobody vouches for raise anything
                shapes = {key: tuple(value.shape) for key, value in child.state_dict().items()}
                said = f"no {error}" if isinstance(error, KeyError) else str(error)
                raise ModelUnsupported(
                    f"{where}: {child.foreign_name} is not the published layer "
                    f"({' '.join(said.split())[:200]}); its parameters are {shapes}"
                ) from None
            setattr(model, name, in_place_of(child, ours) if hasattr(child, "f") else ours)
