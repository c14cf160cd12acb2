"""What the doctor found, as text for people and as JSON for programs."""

import json
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Literal

# - ok: as it should be.
# - info: neither good nor bad.
# - warn: the server would start, and something is less than it could be.
# - fail: the server would not start.
Mark = Literal["ok", "info", "warn", "fail"]

_SHOWN: dict[Mark, str] = {"ok": "ok", "info": "-", "warn": "warn", "fail": "FAIL"}
_NAME_WIDTH = 18
_INDENT = " " * 8


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        section: where it belongs, a headline.
        name: what it is.
        mark: what came of it.
        text: what was found, one line.
        fixes: what to do about it, each a command or a sentence.
    """

    section: str
    name: str
    mark: Mark
    text: str
    fixes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """All checks, those of a section one after the other."""

    checks: tuple[Check, ...]

    @property
    def would_start(self) -> bool:
        """Whether the server would start as it is configured."""
        return all(check.mark != "fail" for check in self.checks)

    def text(self) -> str:
        """For people: sections with a line for each check, and what it all comes to."""
        lines = []
        for section, checks in groupby(self.checks, key=lambda check: check.section):
            lines += [section, *(line for check in checks for line in _lines(check)), ""]
        warnings = sum(check.mark == "warn" for check in self.checks)
        fails = sum(check.mark == "fail" for check in self.checks)
        verdict = "The server would start" if self.would_start else "The server would NOT start"
        counts = [_count(fails, "problem"), _count(warnings, "warning")]
        return "\n".join([*lines, f"{verdict}: {', '.join(counts)}."])

    def json(self) -> str:
        """For programs: `would_start`, and `checks` with the attributes of `Check`."""
        document = {
            "would_start": self.would_start,
            "checks": [asdict(check) for check in self.checks],
        }
        return json.dumps(document, indent=2, ensure_ascii=False)


def _lines(check: Check) -> list[str]:
    head = f"  {_SHOWN[check.mark]:<5} {check.name:<{_NAME_WIDTH}} {check.text}"
    return [head, *(f"{_INDENT}fix: {fix}" for fix in check.fixes)]


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"
