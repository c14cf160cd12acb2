from pathlib import Path

from server.settings import settings_table


def test_the_readme_describes_every_setting_as_it_is(repo_dir: Path) -> None:
    readme = (repo_dir / "README.md").read_text(encoding="utf-8")
    missing = [row for row in settings_table().splitlines() if row not in readme.splitlines()]
    assert not missing, "put these rows into README.md:\n" + "\n".join(missing)


def test_the_readme_describes_no_setting_that_is_gone(repo_dir: Path) -> None:
    readme = (repo_dir / "README.md").read_text(encoding="utf-8")
    described = [line for line in readme.splitlines() if line.startswith("| `YOLO_FLA_")]
    assert set(described) <= set(settings_table().splitlines())
