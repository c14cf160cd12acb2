"""Every code block of these pages is run, as a reader would."""

import re
from pathlib import Path

import pytest

from tests.docs.blocks import Block, read_blocks
from tests.docs.checkout import Checkout
from tests.docs.running import run_page

# README first: its `make serve` makes the environment that the others find.
PAGES = ("README.md", "docs/start.md", "docs/examples.md")


def blocks_of_kind(repo: Path, kind: str) -> list[Block]:
    return [block for page in PAGES for block in read_blocks(repo, page) if block.kind == kind]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_the_page_does_what_the_page_says(
    page: str, repo_dir: Path, checkout: Checkout
) -> None:
    skipped = run_page(repo_dir, page, checkout)
    if skipped:
        pytest.skip("the others were run; " + "; ".join(skipped))


def test_blocks_that_other_tests_run_name_tests_that_are_there(repo_dir: Path) -> None:
    for block in blocks_of_kind(repo_dir, "by"):
        path, _, name = block.rest.partition("::")
        assert f"def {name}(" in (repo_dir / path).read_text(encoding="utf-8"), block.where


def test_make_test_and_make_check_are_what_has_to_pass(repo_dir: Path) -> None:
    commands = (repo_dir / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    ours = [
        block
        for block in blocks_of_kind(repo_dir, "by")
        if block.rest.endswith("test_make_test_and_make_check_are_what_has_to_pass")
    ]
    assert ours, "the README shows how to run the tests"
    for block in ours:
        typed = [re.sub(r"\s+#.*", "", line) for line in block.text.splitlines()]
        assert set(typed) <= set(commands), block.where


def test_container_commands_are_on_the_page_that_the_containers_tests_run(repo_dir: Path) -> None:
    assert {block.page for block in blocks_of_kind(repo_dir, "container")} == {"README.md"}
    runs_them = (repo_dir / "tests" / "container" / "test_pages.py").read_text(encoding="utf-8")
    assert 'PAGE = "README.md"' in runs_them


def test_the_flow_diagram_is_that_of_the_index(repo_dir: Path) -> None:
    index = (repo_dir / "docs" / "index.md").read_text(encoding="utf-8")
    (diagram,) = [
        block
        for block in blocks_of_kind(repo_dir, "by")
        if block.rest.endswith("test_the_flow_diagram_is_that_of_the_index")
    ]
    assert f"```text\n{diagram.text.rstrip()}\n```\n" in index
