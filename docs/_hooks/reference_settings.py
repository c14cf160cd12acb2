"""The settings as Markdown tables: from `server.settings` alone."""

from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic.fields import FieldInfo

from server.inference.repository import DEFAULT_MODEL
from server.settings import Settings, variable_name

UNITS = {"_s": "s", "_bytes": "bytes", "_pixels": "pixels", "_images": "images"}
OTHER_UNITS = {
    "decode_threads": "threads",
    "http_workers": "workers",
    "intra_op_threads": "threads",
    "max_batch_size": "images",
    "max_images_per_request": "images",
}
MEBI = 2**20


def all_settings() -> set[str]:
    """The names of all settings."""
    return set(Settings.model_fields)


def settings_table(names: Sequence[str]) -> str:
    """A row for each of some settings.

    Raises:
        KeyError: one that is not there.
    """
    rows = ["| setting | default | values | |", "|---|---|---|---|"]
    for name in names:
        field = Settings.model_fields[name]
        flag = f"--{name.replace('_', '-')}"
        rows.append(
            f"| `{variable_name(name)}`<br>`{flag}` | {_default(field, _unit(name))} "
            f"| {_values(field, _unit(name))} | {field.description} |"
        )
    return "\n".join(rows)


def _unit(name: str) -> str:
    ending = next((unit for end, unit in UNITS.items() if name.endswith(end)), "")
    return OTHER_UNITS.get(name, ending)


def _default(field: FieldInfo, unit: str) -> str:
    default = field.default
    if default in (None, ()):
        return "unset"
    if isinstance(default, Path):
        return f"`{default.relative_to(DEFAULT_MODEL.parent)}`"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if unit == "bytes" and default % MEBI == 0:
        return f"`{default}` ({default // MEBI} MiB)"
    return f"`{default}`" + (f" {unit}" if unit else "")


def _values(field: FieldInfo, unit: str) -> str:
    kinds = [each for each in _members(field.annotation) if each is not NoneType]
    if all(get_origin(each) is Literal for each in kinds):
        return ", ".join(f"`{value}`" for each in kinds for value in get_args(each))
    if kinds == [bool]:
        return "`true`, `false`"
    bounds = {type(each): each for each in field.metadata}
    if Le in bounds:
        low = f"over {bounds[Gt].gt:g}" if Gt in bounds else _number(bounds[Ge].ge)
        return f"{low} to {_number(bounds[Le].le)}" + (f" {unit}" if unit else "")
    if kinds == [Path]:
        return "a path"
    return "texts, with commas between" if get_origin(kinds[0]) is tuple else "a text"


def _members(annotation: object) -> tuple[object, ...]:
    if get_origin(annotation) in (Literal, tuple):
        return (annotation,)
    return get_args(annotation) or (annotation,)


def _number(value: object) -> str:
    return f"{value:,}".replace(",", " ") if isinstance(value, int) else f"{value:g}"
