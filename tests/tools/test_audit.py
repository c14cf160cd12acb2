from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import audit
import pytest
from audit import Answer, Unreachable

PINS = ["a-b==1.0", "c==2.0"]
FOUND = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["1.1"]}


def answering(**services: Any) -> Any:
    def ask(pins: Sequence[str], service: str) -> Answer:
        given: Mapping[str, Any] | None = services.get(service)
        if given is None:
            raise Unreachable("no route")
        return [{"name": pin.partition("==")[0].replace("-", "_")} | given[pin] for pin in pins]

    return ask


def fine(*pins: str) -> dict[str, Any]:
    return {pin: {"vulns": []} for pin in pins}


def test_pins_without_advisories_pass() -> None:
    findings = audit.audit(PINS, answering(pypi=fine(*PINS)))
    assert (findings.exit_code, findings.clean) == (0, tuple(PINS))
    assert findings.text() == "2 pins looked up: none has a known vulnerability"


def test_a_vulnerable_pin_is_told_with_what_mends_it() -> None:
    findings = audit.audit(PINS, answering(pypi=fine("c==2.0") | {"a-b==1.0": {"vulns": [FOUND]}}))
    assert findings.exit_code == 1
    assert findings.text() == (
        "a-b==1.0: PYSEC-1, CVE-1, mended in 1.1\naudit: of 2 pins 1 vulnerable, 0 not looked up"
    )


def test_what_can_not_be_looked_up_does_not_pass() -> None:
    findings = audit.audit(PINS, answering())
    assert findings.exit_code == 2
    assert "c==2.0 was not looked up: pypi: no route; osv: no route" in findings.text()
    assert findings.text().endswith("NOT AUDITED: of 2 pins 0 vulnerable, 2 not looked up")


def test_what_one_service_does_not_know_the_next_is_asked() -> None:
    unknown = {"c==2.0": {"skip_reason": "not found"}}
    first = fine("a-b==1.0") | unknown
    both = audit.audit(PINS, answering(pypi=first, osv={"c==2.0": {"vulns": [FOUND]}}))
    assert (both.clean, list(both.vulnerable), both.exit_code) == (("a-b==1.0",), ["c==2.0"], 1)
    alone = audit.audit(PINS, answering(pypi=first))
    assert alone.unknown == {"c==2.0": "pypi: not found; osv: no route"}
    assert alone.exit_code == 2
    assert alone.text().endswith("audit: of 2 pins 0 vulnerable, 1 not looked up")


def test_a_pin_that_an_answer_leaves_out_is_not_taken_for_looked_up() -> None:
    def forgetful(pins: Sequence[str], service: str) -> Answer:
        return [{"name": "c", "vulns": []}]

    assert list(audit.audit(PINS, forgetful).unknown) == ["a-b==1.0"]


def test_all_pins_of_this_project_are_read(repo_dir: Path) -> None:
    pins = audit.read_pins(repo_dir / "constraints.txt")
    assert len(pins) > 100
    assert all(pin.count("==") == 1 for pin in pins)


@pytest.mark.slow  # it may wait for a network that is not there
def test_a_version_that_never_was_is_not_taken_for_looked_up() -> None:
    findings = audit.audit(["yolov8-fla==0.0.0.dev0"], audit.ask_pip_audit)
    assert findings.exit_code == 2, findings.text()
