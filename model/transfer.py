"""Starts a network from another one's layers.

An attention layer in between shifts the index of every layer behind it, so ultralytics' transfer
by name would pair the wrong ones. Here the two lists of layers are aligned by what the layers are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.nn.tasks import DetectionModel

from model.attention.table import MECHANISMS
from model.checkpoint import Saved

ATTENTION = ("attention", "FLA")  # what attention inside a block is called, by us and by tutorials
CLASSIFICATION = "cv3."  # the branch of the head whose widths follow from the number of classes
LEAST_SHARE = 0.5  # of the parameters outside attention and classification; below, it is another

Layer = dict[str, Tensor]  # the tensors of one layer, by their names within it


@dataclass(frozen=True)
class Transfer:
    """What a network took from a checkpoint.

    Attributes:
        source: file name of the checkpoint.
        taken: tensors that were taken over.
        total: tensors of the network, without those of new layers.
        new: layers that the checkpoint has not, and how they start.
        not_taken: what either side has that was left, and why.
    """

    source: str
    taken: int
    total: int
    new: tuple[str, ...]
    not_taken: tuple[str, ...]

    def __str__(self) -> str:
        """One line for the user."""
        parts = [f"{self.taken} of {self.total} tensors from {self.source}"]
        if self.new:
            parts.append(f"new: {', '.join(self.new)}")
        if self.not_taken:
            parts.append(f"not taken: {', '.join(self.not_taken)}")
        return "; ".join(parts)


@torch.no_grad()
def transfer(saved: Saved, model: DetectionModel) -> Transfer:
    """Takes every tensor over whose layer and shape match; new attention starts as an identity.

    Args:
        saved: the checkpoint; plain YOLOv8 of the same scale, or one with attention layers.
        model: changed in place. It then computes what the checkpoint's network does, where
            everything was taken: exactly with `FLABlock`, nearly (see `start_near_identity`)
            with `C2fFLA`.

    Raises:
        ValueError: less than half of the network's weights have a counterpart; the model is then
            as it was.
    """
    theirs, ours = layers_of(saved.tensors), layers_of(model.state_dict())
    names = {i: type(layer).__name__ for i, layer in enumerate(model.model)}
    pairs = aligned(theirs, ours)
    take = [
        (f"model.{i}.{name}", theirs[j][name])
        for j, i in pairs
        for name, tensor in ours[i].items()
        if name in theirs[j] and theirs[j][name].shape == tensor.shape
    ]
    check_share(saved, take, ours)

    state = model.state_dict()
    for name, tensor in take:
        state[name].copy_(tensor)
    taken = {name for name, _ in take}
    new = {i: layer for i, layer in ours.items() if i not in {i for _, i in pairs}}
    lines = []
    for i, name in names.items():
        beginning = start_of(model.model[i], f"model.{i}.", taken, i in new)
        lines += [f"model.{i} {name} ({beginning})"] if beginning else []
    kept = {j for j, _ in pairs}
    total = sum(
        not is_attention(name) or f"model.{i}.{name}" in taken
        for i, layer in ours.items()
        if i not in new
        for name in layer
    )
    return Transfer(
        source=saved.file_name,
        taken=len(taken),
        total=total,
        new=tuple(lines),
        not_taken=(
            *mismatches(theirs, ours, pairs, names),
            *(
                f"{saved.layer_classes.get(j, 'layer')} there at model.{j}"
                for j in theirs
                if j not in kept
            ),
            *renamed(saved, model, taken),
        ),
    )


def layers_of(tensors: Mapping[str, Tensor]) -> dict[int, Layer]:
    """The layers that have tensors, by index, in order."""
    layers: dict[int, Layer] = {}
    for name, tensor in tensors.items():
        model, _, rest = name.partition(".")
        index, _, rest = rest.partition(".")
        if model == "model" and index.isdecimal() and rest:
            layers.setdefault(int(index), {})[rest] = tensor
    return dict(sorted(layers.items()))


def is_attention(name: str) -> bool:
    """Whether a tensor belongs to an attention inside a block, by its name within the layer."""
    return any(part in ATTENTION for part in name.split("."))


def kind(layer: Layer) -> frozenset[str]:
    """What a layer is, whatever its widths: the names of its tensors.

    Attention inside a block does not count: a C2fFLA is a C2f. A layer that is nothing but
    attention is of a kind of its own.
    """
    return frozenset(name for name in layer if not is_attention(name)) or frozenset(layer)


def aligned(theirs: dict[int, Layer], ours: dict[int, Layer]) -> list[tuple[int, int]]:
    """Pairs of layer indices, in order in both: as many of a kind as can be.

    Among alignments that pair as many layers, the one with the most tensors of the same shape.
    """
    a, b = list(theirs), list(ours)
    # best[m][n]: pairs, equal shapes and the alignment itself of the first m and n layers.
    best: list[list[tuple[int, int, list[tuple[int, int]]]]] = [
        [(0, 0, []) for _ in range(len(b) + 1)] for _ in range(len(a) + 1)
    ]
    for m, j in enumerate(a, 1):
        for n, i in enumerate(b, 1):
            choices = [best[m - 1][n], best[m][n - 1]]
            if kind(theirs[j]) == kind(ours[i]):
                pairs, shapes, path = best[m - 1][n - 1]
                same = sum(
                    theirs[j][name].shape == tensor.shape
                    for name, tensor in ours[i].items()
                    if name in theirs[j]
                )
                choices.append((pairs + 1, shapes + same, [*path, (j, i)]))
            best[m][n] = max(choices, key=lambda choice: choice[:2])
    return best[-1][-1][2]


def check_share(saved: Saved, take: list[tuple[str, Tensor]], ours: dict[int, Layer]) -> None:
    """Raises ValueError where too little matches for a transfer to be what was meant."""
    value_counts = {
        f"model.{i}.{name}": tensor.numel()
        for i, layer in ours.items()
        for name, tensor in layer.items()
        if not is_attention(name) and not name.startswith(CLASSIFICATION)
    }
    matching = sum(value_counts.get(name, 0) for name, _ in take)
    share = matching / sum(value_counts.values())
    if share < LEAST_SHARE:
        scale = (saved.table or {}).get("scale")
        of = f" (scale {scale})" if scale else ""
        raise ValueError(
            f"{saved.file_name}{of}: only {share:.0%} of the network's weights have a counterpart "
            f"in it: it is of another scale or architecture"
        )


def start_of(layer: nn.Module, prefix: str, taken: set[str], is_new: bool) -> str:
    """How a layer that holds new weights begins; new attention in it is set so. Empty: as taken."""
    for mechanism in MECHANISMS:
        new = [
            module
            for name, module in layer.named_modules()
            if isinstance(module, mechanism.module) and f"{prefix}{name}.proj.weight" not in taken
        ]
        if new and (beginning := mechanism.start(layer, new)):
            return beginning + (", rest random" if is_new and beginning != "identity" else "")
    return "random" if is_new and any(True for _ in layer.parameters()) else ""


def mismatches(
    theirs: dict[int, Layer],
    ours: dict[int, Layer],
    pairs: list[tuple[int, int]],
    names: dict[int, str],
) -> list[str]:
    """What paired layers have in other shapes, or only there."""
    lines = []
    for j, i in pairs:
        both = [name for name in ours[i] if name in theirs[j]]
        misshapen = [name for name in both if theirs[j][name].shape != ours[i][name].shape]
        classes = [name for name in misshapen if name.startswith(CLASSIFICATION)]
        if classes and names[i] == "Detect":
            there, here = class_count(theirs[j]), class_count(ours[i])
            lines.append(f"head classification ({there} classes there, {here} here)")
            misshapen = [name for name in misshapen if name not in classes]
        if only_there := [name for name in theirs[j] if name not in ours[i]]:
            what = "attention" if all(map(is_attention, only_there)) else "other tensors"
            lines.append(f"{what} inside model.{j} there")
        if misshapen:
            lines.append(f"{len(misshapen)} tensors of model.{i} {names[i]} (other shapes)")
    return lines


def class_count(head: Layer) -> int:
    """The number of classes of a detection head."""
    last = max(name for name in head if name.startswith("cv3.0.") and name.endswith("bias"))
    return head[last].shape[0]


def renamed(saved: Saved, model: Any, taken: set[str]) -> list[str]:
    """Says when the classification was taken although its classes have other names."""
    names = tuple(model.names.values())
    head = f"model.{len(model.model) - 1}.{CLASSIFICATION}"
    there = saved.class_names or ()
    if there == names or len(there) != len(names):
        return []
    if not any(name.startswith(head) for name in taken):
        return []
    return [f"class names (there {', '.join(there)}; here {', '.join(names)})"]
