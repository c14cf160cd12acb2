"""The Chinese pages have what the English ones have; who changes one has to change its twin.

Their code blocks are run as the English pages': they are the same.
"""

import re
from pathlib import Path

import pytest

from tests.docs.twins import Outline, differences, outline, translated_links

TWINS = {
    "README.md": "README.zh-CN.md",
    "docs/start.md": "docs/zh/start.md",
    "docs/export.md": "docs/zh/export.md",
    "docs/bring-your-checkpoint.md": "docs/zh/bring-your-checkpoint.md",
    "docs/troubleshooting.md": "docs/zh/troubleshooting.md",
}


@pytest.fixture(scope="module")
def outlines(repo_dir: Path) -> dict[str, Outline]:
    pages = [*TWINS.keys(), *TWINS.values()]
    return {each: outline((repo_dir / each).read_text(encoding="utf-8"), each) for each in pages}


def prose(text: str) -> str:
    """A page without its code blocks."""
    return re.sub(r"^ *```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", TWINS)
def test_the_chinese_page_has_what_the_english_one_has(
    page: str, outlines: dict[str, Outline]
) -> None:
    links = translated_links(TWINS, outlines)
    found = differences(outlines[page], outlines[TWINS[page]], links)
    assert not found, f"{TWINS[page]} is behind {page}:\n" + "\n".join(found)


@pytest.mark.parametrize("page", TWINS)
def test_twins_lead_to_each_other(page: str, outlines: dict[str, Outline]) -> None:
    assert outlines[page].twin == TWINS[page]
    assert outlines[TWINS[page]].twin == page


def test_every_chinese_page_has_an_english_one(repo_dir: Path) -> None:
    there = {each.relative_to(repo_dir).as_posix() for each in repo_dir.glob("docs/zh/**/*.md")}
    assert there == {each for each in TWINS.values() if each.startswith("docs/")}


@pytest.mark.parametrize("page", TWINS.values())
def test_emphasis_ends_where_markdown_sees_it(page: str, repo_dir: Path) -> None:
    # `**` behind punctuation ends nothing if a letter follows, and Chinese characters are letters.
    text = prose((repo_dir / page).read_text(encoding="utf-8"))
    found = re.findall(r"(\*{1,2})(?!\s)([^*\n`]+)\1(.?)", text)
    assert found
    assert not [each for each in found if not each[1][-1].isalnum() and each[2].isalnum()]


def test_chinese_words_of_the_page_are_quoted_as_it_has_them(repo_dir: Path) -> None:
    modules = sorted((repo_dir / "server/ui").glob("*.js"))
    words = "".join(each.read_text(encoding="utf-8") for each in modules)
    page = (repo_dir / "docs/zh/troubleshooting.md").read_text(encoding="utf-8")
    (paragraph,) = re.findall(r"^在中文界面下.*$", page, re.MULTILINE)
    quoted = re.findall(r"“(.+?)”", paragraph)
    assert len(quoted) == 4
    for each in quoted:
        assert f'"{each}"' in words
