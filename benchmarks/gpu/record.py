"""The one JSON file of raw figures: parts that were measured in one call or in several.

    {"schema": 1, "device": "cuda", "machine": {...}, "inputs": "sha256 of the manifest",
     "parts": {"raw": {"status": "complete", "figures": {...}, ...}, ...}}

A part is `complete`; `cut short`, when its time ran out before it had all that it wanted; or
`failed`, with the end of what it said. The last two may have figures as well.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SCHEMA = 1
FILE = "gpu.json"
STATUSES = ("failed", "cut short", "complete")  # the better ones last
# What has to be the same for parts to stand in one table.
SAME = ("device", "inputs", "machine")

Record = dict[str, Any]


class DoNotMatch(Exception):
    """Figures of different machines, versions or inputs; the message names what differs."""


def new_record(device: str, inputs: str, machine: Mapping[str, Any]) -> Record:
    """A record without parts.

    Args:
        device: that models run on: "cpu", "cuda", "cuda:N".
        inputs: sha256 of the manifest.
        machine: names and versions that stay the same between calls.
    """
    return {
        "schema": SCHEMA,
        "device": device,
        "inputs": inputs,
        "machine": dict(machine),
        "parts": {},
    }


def read_record(path: Path) -> Record:
    """Reads what `write_record` wrote.

    Raises:
        ValueError: it is no such file, or one of another schema.
    """
    try:
        record: Record = json.loads(path.read_text())
        if record["schema"] != SCHEMA:
            raise ValueError(f"{path}: schema {record['schema']}, expected {SCHEMA}")
        known = isinstance(record["parts"], dict) and all(key in record for key in SAME)
    except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: no figures of benchmarks.gpu: {error!r}") from None
    if not known:
        raise ValueError(f"{path}: no figures of benchmarks.gpu")
    return record


def write_record(record: Record, path: Path) -> None:
    """Replaces the file at once, so that a call that is killed leaves a whole one."""
    draft = path.with_name(f"{path.name}.part")
    draft.write_text(json.dumps(finite(record), indent=1, allow_nan=False) + "\n")
    draft.replace(path)


def finite(value: Any) -> Any:
    """The same with None for numbers that JSON does not have: NaN and infinities."""
    if isinstance(value, Mapping):
        return {str(key): finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def differences(ours: Record, theirs: Record) -> list[str]:
    """What differs of what has to be the same, a line each."""
    pairs = {key: (ours[key], theirs[key]) for key in ("device", "inputs")}
    for key in sorted({*ours["machine"], *theirs["machine"]}):
        pairs[key] = ours["machine"].get(key), theirs["machine"].get(key)
    return [
        f"{key}: {mine!r} and {other!r}" for key, (mine, other) in pairs.items() if mine != other
    ]


def merged(records: Sequence[Record]) -> Record:
    """All parts in one record; of a part that is there twice the better, else the later one.

    Raises:
        DoNotMatch: they are not of one machine with the same versions and inputs.
    """
    first = records[0]
    result = new_record(first["device"], first["inputs"], first["machine"])
    for record in records:
        if found := differences(first, record):
            raise DoNotMatch("; ".join(found))
        for name, part in record["parts"].items():
            known = result["parts"].get(name)
            if known is None or rank(part) >= rank(known):
                result["parts"][name] = part
    return result


def rank(part: Mapping[str, Any]) -> int:
    """How much a part's figures are worth, against another try's."""
    return STATUSES.index(part["status"])


def allotted_s(weights: Mapping[str, float], left_s: float) -> float:
    """Seconds for the first of the parts that are still to come: its share of what is left.

    Args:
        weights: of these parts, > 0, the next one first.
        left_s: for all of them.
    """
    return left_s * next(iter(weights.values())) / sum(weights.values())
