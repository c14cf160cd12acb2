"""A request's parameters, from the query, a form or JSON, read strictly."""

import math
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, TypeGuard

from server.errors import InvalidParameter
from server.vision.nms import DetectParameters

NAMES = ("conf", "iou", "max_det", "classes", "agnostic_nms", "clip", "format")
MAX_CHARACTERS = 64 * 1024  # read on the event loop; a JSON text may be as long as the body
INTEGER = re.compile(r"[+-]?[0-9]{1,9}")
NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True, slots=True)
class RequestParameters:
    """What a request chose.

    Attributes:
        detect: thresholds and classes of the postprocessing.
        format: "json", or "image" for an annotated image.
    """

    detect: DetectParameters
    format: Literal["json", "image"]


def read_parameters(
    parameters: Sequence[tuple[str, object]], class_names: Sequence[str]
) -> RequestParameters:
    """Reads and checks parameters; those not given have their defaults.

    Args:
        parameters: names and values; text from a query or form, any value from JSON. A null counts
            as not given. `classes` may be repeated, the others not.
        class_names: the model's; `classes` takes these or their indices.

    Raises:
        InvalidParameter: an unknown name, a repetition, or a value of the wrong kind or range.
    """
    values: dict[str, object] = {}
    classes: list[int] = []
    for name, value in parameters:
        if name not in NAMES:
            raise InvalidParameter(
                f"unknown parameter {truncate_repr(name)}; known are {', '.join(NAMES)}"
            )
        if value is None:
            continue
        if isinstance(value, str) and len(value) > MAX_CHARACTERS:
            raise InvalidParameter(f"{name} has over {MAX_CHARACTERS} characters")
        if name == "classes":
            classes += _class_ids(value, class_names)
        elif name in values:
            raise InvalidParameter(f"{name} is given more than once")
        values[name] = value
    default = DetectParameters()
    detect = DetectParameters(
        conf=number("conf", values.get("conf", default.conf)),
        iou=number("iou", values.get("iou", default.iou)),
        max_det=_integer("max_det", values.get("max_det", default.max_det)),
        classes=tuple(dict.fromkeys(classes)) if "classes" in values else None,
        agnostic_nms=_boolean("agnostic_nms", values.get("agnostic_nms", default.agnostic_nms)),
        clip=_boolean("clip", values.get("clip", default.clip)),
    )
    return RequestParameters(detect, _format(values.get("format", "json")))


def number(name: str, value: object) -> float:
    """A number that is given as such or as text; raises `InvalidParameter` for anything else."""
    if isinstance(value, str) and NUMBER.fullmatch(value):
        value = float(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        with suppress(OverflowError):  # JSON has integers that no float can hold
            if math.isfinite(value):
                return float(value)
    raise InvalidParameter(f"{name} must be a number, not {truncate_repr(value)}")


def _integer(name: str, value: object) -> int:
    if isinstance(value, str) and INTEGER.fullmatch(value):
        value = int(value)
    if not _is_integer(value):
        raise InvalidParameter(f"{name} must be an integer, not {truncate_repr(value)}")
    return value


def _boolean(name: str, value: object) -> bool:
    if isinstance(value, str):
        value = BOOLEANS.get(value.lower(), value)
    if not isinstance(value, bool):
        raise InvalidParameter(f"{name} must be true or false, not {truncate_repr(value)}")
    return value


def _format(value: object) -> Literal["json", "image"]:
    if value == "json":
        return "json"
    if value == "image":
        return "image"
    raise InvalidParameter(f"format must be json or image, not {truncate_repr(value)}")


def _class_ids(value: object, class_names: Sequence[str]) -> list[int]:
    if isinstance(value, str) and value not in class_names:  # a name may hold a comma
        value = [each.strip() for each in value.split(",")]
    entries = value if isinstance(value, list) else [value]
    if len(entries) > len(class_names):  # read on the event loop, which a long list would stop
        raise InvalidParameter(f"classes has {len(entries)} entries, of {len(class_names)} classes")
    return [_class_id(entry, class_names) for entry in entries]


def _class_id(entry: object, class_names: Sequence[str]) -> int:
    if isinstance(entry, str):
        if entry in class_names:
            return list(class_names).index(entry)
        if INTEGER.fullmatch(entry):
            entry = int(entry)
    if _is_integer(entry) and 0 <= entry < len(class_names):
        return entry
    raise InvalidParameter(
        f"classes takes ids 0..{len(class_names) - 1} or names ({_listed(class_names)}), "
        f"not {truncate_repr(entry)}"
    )


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _listed(class_names: Sequence[str]) -> str:
    names = ", ".join(class_names[:10])
    return names if len(class_names) <= 10 else f"{names}, ..."


def truncate_repr(value: object) -> str:
    """A value of a request, short enough for a message."""
    if isinstance(value, list | dict):  # may be as large as the body
        return "a list" if isinstance(value, list) else "an object"
    text = repr(value[:60] if isinstance(value, str) else value)
    return text if len(text) <= 60 else text[:57] + "..."
