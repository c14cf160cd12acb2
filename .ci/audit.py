"""Looks every pin of constraints.txt up among known vulnerabilities: `make audit`.

Ends with 0 when all were looked up and none has one, 1 when one has, and 2 when some could not be
looked up: neither PyPI's advisories nor OSV's can be reached, or they don't know the version.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"
SERVICES = ("pypi", "osv")
# Advisories that don't concern what we do with a library: the id, and why.
ACCEPTED: Mapping[str, str] = {}
SHOWN = 5

Answer = Sequence[Mapping[str, Any]]  # pip-audit's `dependencies`


class Unreachable(Exception):
    """A service gave no answer; the text says why."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What came of it; pins are `name==version`.

    Attributes:
        clean: those that no advisory names.
        vulnerable: those that one names, with a line for each.
        unknown: those that could not be looked up, and why.
    """

    clean: tuple[str, ...]
    vulnerable: Mapping[str, tuple[str, ...]]
    unknown: Mapping[str, str]

    @property
    def exit_code(self) -> int:
        """0, 1 or 2, as the module tells."""
        return 1 if self.vulnerable else 2 if self.unknown else 0

    def text(self) -> str:
        """For people; the last line is the verdict."""
        lines = [f"{pin}: {each}" for pin, found in self.vulnerable.items() for each in found]
        shown = list(self.unknown.items())[:SHOWN]
        lines += [f"{pin} was not looked up: {reason}" for pin, reason in shown]
        if len(self.unknown) > SHOWN:
            lines.append(f"... and {len(self.unknown) - SHOWN} more were not")
        total = len(self.clean) + len(self.vulnerable) + len(self.unknown)
        if self.exit_code == 0:
            return f"{total} pins looked up: none has a known vulnerability"
        verdict = "NOT AUDITED" if len(self.unknown) == total else "audit"
        counts = f"{len(self.vulnerable)} vulnerable, {len(self.unknown)} not looked up"
        return "\n".join([*lines, f"{verdict}: of {total} pins {counts}"])


def audit(pins: Sequence[str], ask: Callable[[Sequence[str], str], Answer]) -> Findings:
    """Looks pins up, those that one service does not know at the next.

    Args:
        pins: `name==version`.
        ask: takes pins and one of `SERVICES`; raises `Unreachable`.
    """
    clean: list[str] = []
    vulnerable: dict[str, tuple[str, ...]] = {}
    unknown = dict.fromkeys(pins, "")
    for service in SERVICES:
        try:
            answer = ask(list(unknown), service) if unknown else ()
        except Unreachable as error:
            unknown = {pin: f"{reason}{service}: {error}; " for pin, reason in unknown.items()}
            continue
        known = {_plain(each["name"]): each for each in answer}
        for pin in list(unknown):
            found = known.get(_plain(pin.partition("==")[0]), {"skip_reason": "no answer"})
            if "skip_reason" in found:
                unknown[pin] += f"{service}: {found['skip_reason']}; "
                continue
            del unknown[pin]
            advisories = tuple(_line(each) for each in found["vulns"] if not _accepted(each))
            if advisories:
                vulnerable[pin] = advisories
            else:
                clean.append(pin)
    reasons = {pin: reason.removesuffix("; ") for pin, reason in unknown.items()}
    return Findings(tuple(clean), vulnerable, reasons)


def ask_pip_audit(pins: Sequence[str], service: str) -> Answer:
    """Asks one service; see `audit`."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as requirements:
        requirements.write("\n".join(pins))
        requirements.flush()
        command = [sys.executable, "-m", "pip_audit", "--requirement", requirements.name]
        command += ["--no-deps", "--disable-pip", "--vulnerability-service", service]
        command += ["--format", "json", "--progress-spinner", "off"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    try:
        answer: Answer = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        last = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        raise Unreachable(last.rpartition("Caused by ")[2]) from None
    return answer


def read_pins(constraints: Path) -> list[str]:
    """The lines of constraints.txt that are no comments."""
    lines = constraints.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _accepted(advisory: Mapping[str, Any]) -> bool:
    return not ACCEPTED.keys().isdisjoint([advisory["id"], *advisory.get("aliases", ())])


def _line(advisory: Mapping[str, Any]) -> str:
    names = ", ".join([advisory["id"], *advisory.get("aliases", ())])
    fixes = ", ".join(advisory.get("fix_versions", ())) or "no version yet"
    return f"{names}, mended in {fixes}"


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


if __name__ == "__main__":
    findings = audit(read_pins(CONSTRAINTS), ask_pip_audit)
    print(findings.text())
    sys.exit(findings.exit_code)
