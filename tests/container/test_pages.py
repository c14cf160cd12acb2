"""The container's commands of README.md, as they stand there."""

import os
from pathlib import Path

import pytest

from benchmarks.container_engine import Engine
from tests.docs.blocks import Block, read_blocks
from tests.docs.checkout import fresh_checkout
from tests.docs.running import Run, serving

PAGE = "README.md"
# Stands for `docker` where there is none: builds need what .ci/container_tools.sh knows.
DOCKER = """\
#!/bin/sh
PATH='{path}'  # without this docker, which the script would take for a real one
if [ "$1" = build ]; then shift; exec '{repo}/.ci/container_tools.sh' build "$@"; fi
exec '{tool}' "$@"
"""


@pytest.fixture
def commands(repo_dir: Path, engine: Engine, tmp_path: Path) -> Path:
    """A folder for the PATH that has `docker`."""
    folder = tmp_path / "commands"
    folder.mkdir()
    if engine.command != "docker":
        docker = folder / "docker"
        script = DOCKER.format(repo=repo_dir, tool=engine.command, path=os.environ["PATH"])
        docker.write_text(script, encoding="utf-8")
        docker.chmod(0o755)
    return folder


def first_question(blocks: list[Block]) -> list[Block]:
    """The page's first `curl` and the answer that it shows."""
    at = next(index for index, block in enumerate(blocks) if block.text.startswith("curl "))
    assert blocks[at + 1].kind == "output"
    return blocks[at : at + 2]


def test_the_image_is_built_and_answers_as_the_page_says(
    repo_dir: Path, commands: Path, tmp_path: Path
) -> None:
    blocks = read_blocks(repo_dir, PAGE)
    (block,) = [each for each in blocks if each.kind == "container"]
    checkout = fresh_checkout(repo_dir, tmp_path)
    environment = checkout.environment()
    run = Run(checkout, environment | {"PATH": f"{commands}:{environment['PATH']}"})
    with serving(run, block.text):
        for each in first_question(blocks):
            run.do(each)


def test_the_page_has_no_container_command_that_is_not_run(repo_dir: Path) -> None:
    for block in read_blocks(repo_dir, PAGE):
        assert ("docker " in block.text) is (block.kind == "container"), block.where
