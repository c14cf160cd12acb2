"""The Chinese pages have what the English ones have; who changes one has to change its twin.

Their code blocks are run as the English pages': they are the same.
"""

# ruff: noqa: RUF001 - Chinese has punctuation of its own.

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
CJK = "[\u4e00-\u9fff]"
ENGLISH = """\
# Serve it

**English** · [中文](zh/page.md)

Since March 2026 it takes `--port` and 1,024 images; see [below](#more) or [the guide](guide.md#a).

<!-- block: run -->
```sh
ls '# a'  # what is there, 7.1 GB, by --all
```

## More

| a | b |
|---|---|
| 1.5 | <http://127.0.0.1:8000/> |

- one
- two

```text
# not ready
```
"""
CHINESE = """\
# 部署

[English](../page.md) · **中文**

自 2026 年 3 月起，可以用 `--port`，至多 1,024 张图片；见[指南](../guide.md#a)或[下文](#更多)。

<!-- block: run -->
```sh
ls '# a'    # 用 --all 看有哪些文件，7.1 GB
```

## 更多

| 甲 | 乙 |
|---|---|
| 1.5 | <http://127.0.0.1:8000/> |

- 一
- 二

```text
# not ready
```
"""


@pytest.fixture(scope="module")
def outlines(repo_dir: Path) -> dict[str, Outline]:
    pages = [*TWINS.keys(), *TWINS.values()]
    return {each: outline((repo_dir / each).read_text(encoding="utf-8"), each) for each in pages}


def compared(english: str, chinese: str) -> list[str]:
    pair = {"docs/page.md": "docs/zh/page.md"}
    both = {
        "docs/page.md": outline(english, "docs/page.md"),
        "docs/zh/page.md": outline(chinese, "docs/zh/page.md"),
    }
    links = translated_links(pair, both)
    return differences(both["docs/page.md"], both["docs/zh/page.md"], links)


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


def test_twins_that_say_the_same_are_alike() -> None:
    assert compared(ENGLISH, CHINESE) == []


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("1,024", "1,025", "number '1025' is not in Chinese"),
        ("1,024 images", "some images", "number '1024' is only in Chinese"),
        ("March", "April", "number '4' is not in Chinese"),
        ("1.5", "1.6", "number '1.6' is not in Chinese"),
        ("`--port`", "`--ports`", "code '--ports' is not in Chinese"),
        ("`--port`", "a port", "code '--port' is only in Chinese"),
        ("#more", "#serve-it", "link 'docs/zh/page.md#部署' is not in Chinese"),
        ("guide.md#a", "guide.md#b", "link 'docs/guide.md#b' is not in Chinese"),
        ("<http://127.0.0.1:8000/>", "<http://127.0.0.1:8001/>", "is not in Chinese"),
        ("ls '# a'", "ls '# b'", "code block"),
        ("ls '# a'", "ls  '# a'", "code block"),
        ("  # what is there, 7.1 GB, by --all", "", "code block"),
        ("7.1 GB", "7.2 GB", "code block"),
        ("--all", "--any", "code block"),
        ("# not ready", "# ready", "code block"),
        ("```text", "```log", "code block"),
        ("```text\n# not ready\n```\n", "", "1 code blocks, 2 in Chinese"),
        ("block: run", "block: serve", "comments"),
        ("## More", "### More", "levels of headings"),
        ("## More\n", "## More\n\n## And more\n", "levels of headings"),
        ("- two\n", "- two\n- three\n", "list items"),
        ("- one\n- two\n", "1. one\n2. two\n", "list items"),
        ("| a | b |", "| a | b | c |", "columns of rows"),
        ("| 1.5 |", "| 1.5 | |\n| |", "columns of rows"),
    ],
)
def test_what_changes_in_english_alone_is_told(before: str, after: str, told: str) -> None:
    assert before in ENGLISH
    found = compared(ENGLISH.replace(before, after, 1), CHINESE)
    assert [each for each in found if told in each], found


def test_only_the_words_of_a_comment_may_differ() -> None:
    assert not compared(ENGLISH.replace("what is there", "who is there"), CHINESE)
    assert "code block" in compared(ENGLISH.replace("# what", "; what"), CHINESE)[0]


@pytest.mark.parametrize("page", TWINS.values())
@pytest.mark.parametrize(
    ("what", "wrong"),
    [
        ("no blank beside Latin", rf"{CJK}[A-Za-z0-9`<]|[A-Za-z0-9`>%]{CJK}"),
        ("Latin punctuation", rf"{CJK}[,;:!?()]|[,;:?()]{CJK}"),
        ("a blank between Chinese", rf"{CJK} +{CJK}"),
        ("a blank before punctuation", r" [，。；：？！）、]"),
    ],
)
def test_chinese_is_set_as_chinese(what: str, wrong: str, page: str, repo_dir: Path) -> None:
    text = prose((repo_dir / page).read_text(encoding="utf-8"))
    text = re.sub(r"!?\[([^\[\]]*)\]\([^()\s]+\)", r"\1", text).replace("*", "")
    found = [text[max(0, m.start() - 15) : m.end() + 15] for m in re.finditer(wrong, text)]
    assert not found, what


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
