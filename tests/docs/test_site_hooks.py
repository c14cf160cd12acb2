"""What is done to pages while the site is built."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from markdown import Markdown
from site_links import OutsideLinks, fitted
from site_math import FormulaInvalid, with_mathml
from site_search import segmented

INLINE = '<span class="arithmatex">\\({}\\)</span>'
BLOCK = '<div class="arithmatex">\\[{}\\]</div>'


def test_a_formula_becomes_mathml_in_its_line_or_apart() -> None:
    inline, block = with_mathml(INLINE.format("q_i")), with_mathml(BLOCK.format("q_i"))
    assert ElementTree.fromstring(inline).get("display") == "inline"
    assert ElementTree.fromstring(block).get("display") == "block"
    assert "arithmatex" not in inline + block


@pytest.mark.parametrize(
    "latex", [r"\nosuchcommand{x}", r"\left( x", r"\begin{nosuch} a &amp; b \end{nosuch}"]
)
def test_a_formula_that_cannot_be_read_is_an_error(latex: str) -> None:
    with pytest.raises(FormulaInvalid):
        with_mathml(INLINE.format(latex))


@pytest.mark.parametrize(
    ("link", "page", "expected"),
    [
        ("train.md#1-data", "export.md", "train.md#1-data"),
        ("../weights/README.md", "export.md", "project/model-card.md"),
        ("../../weights/README.md#accuracy", "zh/start.md", "../project/model-card.md#accuracy"),
        ("../README.md", "export.md", "index.md"),
        ("curve.png", "project/model-card.md", "../repository/weights/curve.png"),
        ("docs/train.md", "project/contributing.md", "../train.md"),
        ("../server/api/app.py", "export.md", None),
        ("../deploy/kubernetes", "kubernetes.md", None),
        ("https://example.org/a.md", "export.md", "https://example.org/a.md"),
        ("#below", "export.md", "#below"),
    ],
)
def test_a_link_is_fitted_to_the_site(
    link: str, page: str, expected: str | None, repo_dir: Path
) -> None:
    assert fitted(link, page, repo_dir) == expected


def test_a_link_to_nothing_is_an_error(repo_dir: Path) -> None:
    with pytest.raises(FileNotFoundError):
        fitted("../server/nothing.py", "export.md", repo_dir)


def test_a_file_that_the_site_does_not_hold_is_told_as_text(repo_dir: Path) -> None:
    links = OutsideLinks(repo_dir)
    links.page = "export.md"
    made = Markdown(extensions=[links]).convert("See [the app](../server/api/app.py).")
    assert "href" not in made
    assert 'title="In the repository: server/api/app.py"' in made
    assert "the app" in made


def test_chinese_characters_can_be_searched_each() -> None:
    index = json.dumps({"config": {}, "docs": [{"title": "导出", "text": "导出 ONNX 模型"}]})
    (entry,) = json.loads(segmented(index))["docs"]
    assert entry == {"title": "导\u200b出", "text": "导\u200b出 ONNX 模\u200b型"}
