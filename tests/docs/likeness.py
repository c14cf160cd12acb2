"""Whether a page shows what a command printed: equal in shape and names, near in numbers."""

import json
import re
from typing import Any

# What another build, machine or moment has otherwise: of what is below, keys and types count.
OF_THE_MOMENT = frozenset({"timings_ms"})
# Of these not even the type: a revision is null where there is no git.
OF_THE_MACHINE = frozenset(
    {"device", "instances", "max_batch_size", "precision", "provider", "reason"}
    | {"cpu_fallback", "request_id", "revision", "server_version", "timestamp", "version"}
)
SCORE = 0.1  # of numbers up to 1
PIXELS = 5.0  # of larger ones
SHARE = 0.05

_NUMBER = re.compile(r"\d[\d,.]*")


def json_differences(shown: Any, seen: Any, where: str = "", *, exactly: bool = True) -> list[str]:
    """What a page's JSON has that an answer has not, or otherwise.

    A list that is shown may be a part of the real one: each of its items must be like one there.
    Whole numbers are equal, others near.

    Args:
        shown: on the page.
        seen: in the answer.
        where: the path to both.
        exactly: numbers and texts too; else only keys and types.

    Returns:
        A line for each difference; none where they are alike.
    """
    if isinstance(shown, dict) and isinstance(seen, dict):
        found = [f"{where}: shown with {key!r}, it has none" for key in shown.keys() - seen.keys()]
        found += [f"{where}: has {key!r}, not shown" for key in seen.keys() - shown.keys()]
        for key in (shown.keys() & seen.keys()) - OF_THE_MACHINE:
            strict = exactly and key not in OF_THE_MOMENT
            found += json_differences(shown[key], seen[key], f"{where}.{key}", exactly=strict)
        return found
    if isinstance(shown, list) and isinstance(seen, list):
        return [
            f"{where}[{index}]: nothing like {json.dumps(item)}"
            for index, item in enumerate(shown)
            if not any(not json_differences(item, each, exactly=exactly) for each in seen)
        ]
    if _is_number(shown) and _is_number(seen):
        far = exactly and abs(shown - seen) > _tolerance(shown)
        return [f"{where}: shown {shown}, is {seen}"] if far else []
    if type(shown) is not type(seen):
        return [f"{where}: shown {shown!r}, is {seen!r}"]
    return [f"{where}: shown {shown!r}, is {seen!r}"] if exactly and shown != seen else []


def text_differences(shown: str, seen: str) -> list[str]:
    """Lines of a page that a command did not print, in this order.

    Numbers may be others, runs of blanks count as one, a line of `...` stands for any lines, and
    `...` within a line for any text.

    Args:
        shown: on the page.
        seen: what the command printed.
    """
    rest = [" ".join(line.split()) for line in seen.splitlines()]
    missing = []
    for line in shown.splitlines():
        wanted = " ".join(line.split())
        if not wanted or wanted == "...":
            continue
        pattern = _as_pattern(wanted)
        place = next((at for at, each in enumerate(rest) if pattern.fullmatch(each)), None)
        if place is None:
            missing.append(f"not printed: {line}")
        else:
            rest = rest[place + 1 :]
    return missing


def _as_pattern(line: str) -> re.Pattern[str]:
    parts = (
        r"\d[\d,.]*".join(re.escape(text) for text in _NUMBER.split(part))
        for part in line.split("...")
    )
    return re.compile(".*".join(parts))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _tolerance(shown: float) -> float:
    if isinstance(shown, int):  # a count, a size, an id
        return 0
    return SCORE if abs(shown) <= 1 else max(PIXELS, SHARE * abs(shown))
