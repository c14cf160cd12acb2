"""What the unknown classes of a checkpoint are: the tutorials' by their names, others by a map.

A map only chooses among the layers that are known here. Nothing that it, or the file, names is
imported or called.
"""

from collections.abc import Mapping, Set
from pathlib import Path

from torch import nn

from export.errors import ModelUnsupported
from export.sources.yaml_file import read_yaml, truncate_repr
from model.allow_list import ALLOWED, FOREIGN, known_names

# The tutorials' come last: of the two named FocusedLinearAttention theirs is meant, not ours.
KINDS: Mapping[str, type[nn.Module]] = {
    **{kind.__name__: kind for kind in ALLOWED if issubclass(kind, nn.Module)},
    **FOREIGN,
}


def read_class_map(path: Path) -> dict[str, str]:
    """Reads a map from a YAML file, such as `my_fork.attn.FLA: FocusedLinearAttention`.

    Returns:
        Name of a class in a checkpoint, with its module or without, to the name of a known layer.

    Raises:
        ModelUnsupported: it cannot be read, or is not a list of such lines.
    """
    table = read_yaml(path)
    if not isinstance(table, dict) or not table:
        raise ModelUnsupported(f"{path}: a map has lines `class in the file: layer known here`")
    for name, kind in table.items():
        if not isinstance(name, str) or not isinstance(kind, str):
            raise ModelUnsupported(
                f"{path}: {truncate_repr(name)}: {truncate_repr(kind)} does not map a name "
                "to a name"
            )
    return table


def kinds_of(names: Set[str], class_map: Mapping[str, str]) -> dict[str, type]:
    """What to load each class as that a file may name: the allow-list, and what the map adds.

    Args:
        names: full names in the file.
        class_map: as `read_class_map` returns it; a full name goes before a bare one, and the map
            before what a bare name says by itself.

    Raises:
        ModelUnsupported: the map says that something is a layer that is not known; or it has a
            line that nothing in the file answers to. Going on would leave a misspelt line
            unnoticed, and the layer it was meant for taken for something else.
    """
    allowed = known_names()
    foreign = names - allowed.keys()
    for name, kind in class_map.items():
        if kind not in KINDS:
            there_are = ", ".join(sorted(KINDS))
            raise ModelUnsupported(f"the map says {name}: {kind}, which is none of {there_are}")
        if name in allowed:
            raise ModelUnsupported(f"the map has {name}, which is known without a map")
        if not any(name in (full, bare(full)) for full in foreign):
            known = ", ".join(sorted(foreign)) or "no class that is not known"
            raise ModelUnsupported(f"the map has {name}, the file names {known}")
    mapped = {full: class_map.get(full) or class_map.get(bare(full)) for full in foreign}
    return known_names(names) | {full: KINDS[kind] for full, kind in mapped.items() if kind}


def bare(full_name: str) -> str:
    """The name of a class without its module."""
    return full_name.rpartition(".")[2]
