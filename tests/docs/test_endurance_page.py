"""docs/endurance.md says what the scenarios' files say: no criterion is left out or softened."""

import json
from pathlib import Path

import pytest

SCENARIOS = ("overload", "mixed", "drains", "reloads")


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_criterion_of_a_scenario_is_on_the_page(scenario: str, repo_dir: Path) -> None:
    page = (repo_dir / "docs/endurance.md").read_text(encoding="utf-8")
    file = repo_dir / f"docs/evidence/endurance-{scenario}.json"
    report = json.loads(file.read_text(encoding="utf-8"))
    section = page.partition(f"## {scenario.capitalize()}\n")[2].partition("\n## ")[0]
    assert report["command"].removeprefix("python ") in section
    for criterion in report["criteria"]:
        met = "yes" if criterion["met"] else "**no**"
        assert f"| {criterion['name']} | {criterion['seen']} | {met} |" in section
