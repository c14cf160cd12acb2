"""The fenced code blocks of a page, and how each is tested.

A comment on the line above a block, which readers don't see, says how:

    <!-- block: serve -->        runs behind the following blocks, until the next such or the end
    <!-- block: run -->          shell by bash, `python` by .venv/bin/python, `js` by node
    <!-- block: run with .venv-serve/bin/python -->    by another interpreter
    <!-- block: run exits 2 -->  ends with this status
    <!-- block: output -->       what the block before prints, or after `serve` what is logged
    <!-- block: file NAME -->    a file that the reader writes
    <!-- block: container -->    run by tests/container, where there is a container tool
    <!-- block: by tests/x.py::test_y -->    that test runs it, or checks what it says

A page that begins with `<!-- blocks: with a server -->` has `make serve` running from its start.
`tests/docs/running.py` does what is declared; pages are named in `tests/docs/test_pages.py`.
"""

import re
from dataclasses import dataclass
from pathlib import Path

KINDS = ("serve", "run", "output", "file", "container", "by")
WITH_A_SERVER = "<!-- blocks: with a server -->"

_DECLARED = re.compile(r"<!-- block: (.+?) -->")
_FENCE = re.compile(r"(?P<indent> *)(?P<marks>`{3,}|~{3,})(?P<language>[\w+-]*)")


class Undeclared(Exception):
    """A block whose test nobody has said, or in words that mean nothing; names page and line."""


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced code block.

    Attributes:
        page: as the page was named.
        line: of its opening fence, from 1.
        language: of the fence, such as `sh`; empty where it names none.
        text: what stands in it, without the fence's indentation, with a newline at its end.
        kind: one of `KINDS`.
        rest: what the comment says behind the kind.
    """

    page: str
    line: int
    language: str
    text: str
    kind: str
    rest: str

    @property
    def where(self) -> str:
        """For messages: page and line."""
        return f"{self.page}:{self.line}"


@dataclass(frozen=True, slots=True)
class Fence:
    """A fenced code block as it stands on a page, declared or not.

    Attributes:
        line: of its opening fence, from 1.
        language: of the fence; empty where it names none.
        text: what stands in it, without the fence's indentation, with a newline at its end.
        above: the line above it; empty at the page's start.
    """

    line: int
    language: str
    text: str
    above: str


def read_fences(repo: Path, page: str) -> list[Fence]:
    """All fenced blocks of a page, in their order."""
    lines = (repo / page).read_text(encoding="utf-8").splitlines()
    fences = []
    index = 0
    while index < len(lines):
        fence = _FENCE.match(lines[index])
        if not fence:
            index += 1
            continue
        start = index
        marks, indent = fence["marks"], len(fence["indent"])
        index += 1
        while not lines[index].strip().startswith(marks):
            index += 1
        text = "".join(f"{line[indent:]}\n" for line in lines[start + 1 : index])
        above = lines[start - 1] if start else ""
        fences.append(Fence(start + 1, fence["language"], text, above))
        index += 1
    return fences


def read_blocks(repo: Path, page: str) -> list[Block]:
    """All blocks of a page, in their order.

    Args:
        repo: the checkout.
        page: its path there, such as `docs/start.md`.

    Raises:
        Undeclared: a block without a comment, or a comment that says nothing known.
    """
    blocks = []
    for fence in read_fences(repo, page):
        kind, rest = _declaration(fence.above, f"{page}:{fence.line}")
        blocks.append(Block(page, fence.line, fence.language, fence.text, kind, rest))
    return blocks


def has_a_server(repo: Path, page: str) -> bool:
    """Whether the page takes a server for granted."""
    return (repo / page).read_text(encoding="utf-8").startswith(WITH_A_SERVER)


def _declaration(line: str, where: str) -> tuple[str, str]:
    declared = _DECLARED.fullmatch(line.strip())
    if not declared:
        raise Undeclared(f"{where}: no `<!-- block: ... -->` on the line above says how it is run")
    kind, _, rest = declared[1].partition(" ")
    if kind not in KINDS:
        raise Undeclared(f"{where}: {kind!r} is none of {', '.join(KINDS)}")
    return kind, rest
