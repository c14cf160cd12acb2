"""docs/troubleshooting.md quotes messages that the code really has, so that people find them.

A quoted line counts as the code's where the text of messages in it covers most of it: names and
numbers in between are examples.
"""

import ast
import errno
import os
import re
from collections.abc import Iterator
from functools import cache
from http import HTTPStatus
from pathlib import Path

import pytest

from server.api.parameters import NAMES
from tests.support.metrics import fresh

REPO = Path(__file__).resolve().parents[2]
PAGES = ("docs/troubleshooting.md", "docs/bring-your-checkpoint.md")
RUNBOOK = ("docs/troubleshooting.md", "docs/operations.md", "docs/tuning.md", "docs/serve.md")
TEXT_BLOCK = re.compile(r"^```text\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BULLET = re.compile(r"^- (\*\*`.*)\\$", re.MULTILINE)
LEAST_FRAGMENT = 4  # characters; shorter ones are everywhere
LEAST_MESSAGE = 9
COVERED = 0.45  # of a line's characters; the rest is examples of names and numbers
# Worded by Python, pydantic or the web framework.
OF_A_LIBRARY = (
    "error: --port: Input should be less than or equal to 65535",
    "error: unrecognized arguments: --modle x",
    "error: mine.onnx: metadata of schema 2 expected: schema_version: Input should be 2",
    "GET /detect: Method Not Allowed",
    "POST /detect/: Not Found",
)


def messages_of(tree: ast.AST) -> Iterator[tuple[str, ...]]:
    """The fixed texts of each string of a module, in order; an f-string has several."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            fixed = [part.value for part in node.values if isinstance(part, ast.Constant)]
            yield tuple(str(text) for text in fixed)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield tuple(re.split(r"\{[^}]*\}", node.value))  # of str.format


@cache
def all_messages() -> frozenset[tuple[str, ...]]:
    found: set[tuple[str, ...]] = set()
    for package in ("server", "export", "model"):
        for path in sorted((REPO / package).rglob("*.py")):
            found.update(messages_of(ast.parse(path.read_text(encoding="utf-8"))))
    makefile = (REPO / "Makefile").read_text(encoding="utf-8")
    found.update((text,) for text in re.findall(r"echo '([^']+)'", makefile))
    page = (REPO / "server/ui/english.js").read_text(encoding="utf-8")
    found.update((text,) for text in re.findall(r'": "([^"]+)"', page))
    found.update((os.strerror(each),) for each in errno.errorcode)
    found.update((status.phrase,) for status in HTTPStatus)
    stripped = (tuple(text.strip(" :;,") for text in each) for each in found)
    return frozenset(
        fragments
        for each in stripped
        if (fragments := tuple(text for text in each if len(text) >= LEAST_FRAGMENT))
    )


def covered_share(line: str) -> float:
    """How much of a line is the fixed text of messages that are there whole, in order."""
    covered = [False] * len(line)
    for fragments in all_messages():
        at, spans = 0, []
        for fragment in fragments:
            start = line.find(fragment, at)
            if start < 0:
                break
            at = start + len(fragment)
            spans.append((start, at))
        else:
            if sum(end - start for start, end in spans) >= LEAST_MESSAGE:
                for start, end in spans:
                    covered[start:end] = [True] * (end - start)
    return sum(covered) / len(line)


def quoted_lines() -> list[str]:
    lines: list[str] = []
    for page in PAGES:
        text = (REPO / page).read_text(encoding="utf-8")
        if page.endswith("troubleshooting.md"):
            for block in TEXT_BLOCK.findall(text):
                lines += block.splitlines()
        for bullet in BULLET.findall(text):
            lines += re.findall(r"\*\*`(.+?)`\*\*", bullet)
    training = (
        (REPO / "docs/train.md").read_text(encoding="utf-8").partition("## Troubleshooting")[2]
    )
    return lines + re.findall(r"^\| `{1,2}(.+?)`{1,2} \|", training, re.MULTILINE)


QUOTED = quoted_lines()


def test_there_is_something_to_check() -> None:
    assert len(QUOTED) > 60


@pytest.mark.parametrize("line", [each for each in QUOTED if each not in OF_A_LIBRARY])
def test_a_quoted_message_is_one_of_the_codes(line: str) -> None:
    share = covered_share(line.removeprefix("error: ").removeprefix("python -m export: "))
    assert share >= COVERED, f"{share:.0%} of it is in the code: {line}"


def test_the_parameters_that_the_message_lists_are_those_that_there_are() -> None:
    (line,) = (each for each in QUOTED if each.startswith("unknown parameter"))
    assert line.endswith(f"known are {', '.join(NAMES)}")


def test_every_metric_that_the_guides_name_is_there() -> None:
    there = fresh("queue_full").exposition().decode()
    for page in RUNBOOK:
        named = re.findall(r"\b(detector_[a-z_]+)", (REPO / page).read_text(encoding="utf-8"))
        missing = {each for each in named if each not in there and "_gpu_" not in each}
        assert not missing, page
