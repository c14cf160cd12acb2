"""What a page and its Chinese twin have in common, and where two of them differ.

Prose can't be compared by a program; what stands in it can. Code blocks, headings, lists and tables
are compared in their order. Within the section of each heading, code spans, numbers and links are
compared as multisets, as another language has another order of words.
"""

import posixpath
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

# In these, what stands behind a # that begins a line or follows a blank, outside of quotes, is
# prose and may be translated, but for its numbers and flags. All other blocks are equal byte for
# byte.
COMMENTED = frozenset({"sh", "yaml"})
# Chinese writes months as numbers.
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)

_FENCE = re.compile(r"^( *)(`{3,})([\w+-]*)\n(.*?)^ *\2 *\n", re.DOTALL | re.MULTILINE)
_HTML_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_LANGUAGES = re.compile(r"^(\*\*English\*\*|\[English\]\(.+\)) · .*中文.*$", re.MULTILINE)
_HEADING = re.compile(r"^(#{1,6}) +(.+)\n", re.MULTILINE)
_CODE = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
_LINK = re.compile(r"(?<=\])\(([^()\s]+)\)")
_URL = re.compile(r"<?\b(https?://[\w./:#?=&%-]*[\w/])>?", re.ASCII)
_NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)*")
_MONTH = re.compile(rf"\b(?:{'|'.join(MONTHS)})(?= \d{{4}})")
_ITEM = re.compile(r"^( *)([-*]|\d+\.) ", re.MULTILINE)
_ROW = re.compile(r"^\|.*\|$", re.MULTILINE)
_FIXED = re.compile(r"--[a-z-]+|\d+(?:\.\d+)*")
_COMMENT = re.compile(r"""(?P<kept>(?:'[^']*'|"[^"]*"|(?<=\S)#|[^#'"])*)(?:#.*)?""")


@dataclass(frozen=True, slots=True)
class Section:
    """From a heading to the next.

    Attributes:
        level: of the heading, 1 to 6.
        anchor: what links to the heading end in.
        items: indentation and mark of each list item, in their order.
        rows: how many columns each row of the tables has.
        codes: code spans, which name the same things in both languages.
        numbers: in the prose, without commas; months of a year count as theirs.
        links: where they lead: URLs, or paths in the repository with their anchors.
    """

    level: int
    anchor: str
    items: list[str] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    codes: Counter[str] = field(default_factory=Counter)
    numbers: Counter[str] = field(default_factory=Counter)
    links: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Outline:
    """A page without its prose.

    Attributes:
        twin: the page that its line of languages leads to; None without such a line.
        blocks: language and text of each code block, with the words of comments taken out.
        declared: comments of HTML, such as how a block is run.
        sections: in their order; the first begins with the page's title.
    """

    twin: str | None
    blocks: list[tuple[str, str]]
    declared: list[str]
    sections: list[Section]


def outline(text: str, page: str) -> Outline:
    """Takes a page apart.

    Args:
        text: Markdown, with a newline at its end.
        page: its path in the repository, from which its links count.
    """
    blocks = [(language, _code(body, language)) for _, _, language, body in _FENCE.findall(text)]
    prose = _FENCE.sub("", text)
    declared = _HTML_COMMENT.findall(prose)
    prose = _HTML_COMMENT.sub("", prose)
    languages = _LANGUAGES.search(prose)
    twin = _LINK.search(languages[0]) if languages else None
    # "", level, title, text, level, title, text, ...
    _, *parts = _HEADING.split(_LANGUAGES.sub("", prose, count=1))
    sections = [
        _section(len(level), title, rest, page)
        for level, title, rest in zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    ]
    return Outline(_target(twin[1], page) if twin else None, blocks, declared, sections)


def translated_links(pairs: Mapping[str, str], outlines: Mapping[str, Outline]) -> dict[str, str]:
    """Where a link of an English page leads in a Chinese one: each twin, and each of its headings.

    Args:
        pairs: English page -> Chinese page.
        outlines: of all of these.
    """
    links = dict(pairs)
    for english, chinese in pairs.items():
        both = zip(outlines[english].sections, outlines[chinese].sections, strict=False)
        links |= {f"{english}#{e.anchor}": f"{chinese}#{c.anchor}" for e, c in both}
    return links


def differences(english: Outline, chinese: Outline, links: Mapping[str, str]) -> list[str]:
    """A line for each thing that one of the twins has and the other has not.

    Args:
        english: the page that is translated.
        chinese: its translation.
        links: `translated_links`; what is not in it leads to the same place from both.
    """
    found = []
    if len(english.blocks) != len(chinese.blocks):
        found.append(f"{len(english.blocks)} code blocks, {len(chinese.blocks)} in Chinese")
    for ours, theirs in zip(english.blocks, chinese.blocks, strict=False):
        if ours != theirs:
            found.append(f"code block {ours!r}, in Chinese {theirs!r}")
    if english.declared != chinese.declared:
        found.append(f"comments {english.declared}, in Chinese {chinese.declared}")
    levels, theirs_levels = ([each.level for each in p.sections] for p in (english, chinese))
    if levels != theirs_levels:
        return [*found, f"levels of headings {levels}, in Chinese {theirs_levels}"]
    for one, other in zip(english.sections, chinese.sections, strict=True):
        found += [f"#{one.anchor}: {each}" for each in _section_differences(one, other, links)]
    return found


def _section_differences(english: Section, chinese: Section, links: Mapping[str, str]) -> list[str]:
    wanted: Counter[str] = Counter()
    for link, times in english.links.items():
        wanted[links.get(link, link)] += times
    found = []
    if english.items != chinese.items:
        found.append(f"list items {english.items}, in Chinese {chinese.items}")
    if english.rows != chinese.rows:
        found.append(f"columns of rows {english.rows}, in Chinese {chinese.rows}")
    for what, ours, theirs in (
        ("code", english.codes, chinese.codes),
        ("number", english.numbers, chinese.numbers),
        ("link", wanted, chinese.links),
    ):
        found += [f"{what} {each!r} is not in Chinese" for each in (ours - theirs).elements()]
        found += [f"{what} {each!r} is only in Chinese" for each in (theirs - ours).elements()]
    return found


def _code(body: str, language: str) -> str:
    if language not in COMMENTED:
        return body
    return "".join(f"{_without_comment(line)}\n" for line in body.splitlines())


def _without_comment(line: str) -> str:
    match = _COMMENT.match(line)
    kept = match["kept"] if match else line
    if kept == line:
        return line
    comment = line.removeprefix(kept)
    return " ".join([kept.rstrip(), "#", *sorted(_FIXED.findall(comment))])


def _section(level: int, title: str, text: str, page: str) -> Section:
    whole = f"{title}\n\n{text}"
    codes = Counter(" ".join(code.split()) for _, code in _CODE.findall(whole))
    prose = _CODE.sub("", whole)
    links = [*_LINK.findall(prose), *_URL.findall(_LINK.sub("", prose))]
    prose = _URL.sub("", _LINK.sub("", prose))
    prose = _MONTH.sub(lambda month: str(MONTHS.index(month[0]) + 1), prose)
    return Section(
        level=level,
        anchor=_anchor(title),
        items=[indent + mark for indent, mark in _ITEM.findall(text)],
        rows=[row.count("|") - 1 for row in _ROW.findall(_CODE.sub("", text))],
        codes=codes,
        numbers=Counter(each.replace(",", "") for each in _NUMBER.findall(prose)),
        links=Counter(_target(link, page) for link in links),
    )


def _anchor(title: str) -> str:
    """As GitHub and the site make it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")


def _target(link: str, page: str) -> str:
    if "://" in link:
        return link
    path, hash_mark, anchor = link.partition("#")
    there = posixpath.normpath(posixpath.join(posixpath.dirname(page), path)) if path else page
    return f"{there}{hash_mark}{anchor}"
