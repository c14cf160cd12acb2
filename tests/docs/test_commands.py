"""Commands that pages show and nothing runs: their programs, flags, targets and files are there."""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
PAGES = sorted(path.relative_to(REPO).as_posix() for path in (REPO / "docs").glob("*.md"))
SHELL = re.compile(r"^```(?:sh|bash)\n(.*?)^```", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`([^`\n]*(?:python -m|make) [^`\n]*)`")
MODULE = re.compile(r"python -m ((?:server|export|model|benchmarks)(?:\.\w+)*)((?: .*)?)$")
MAKE = re.compile(r"\bmake ([a-z][a-z-]*)(?: .*?ARGS='([^']*)')?")
FLAG = re.compile(r"(?<=\s)(--[a-z][a-z0-9-]*)")
FILE = re.compile(
    r"(?<![\w/.~-])((?:samples|weights|docker|docs|deploy|export|model)/[\w./-]+\.\w+)"
)
SUBCOMMANDS = {"model": 1, "export": 1}
MADE_BY = {"train": "model train", "export": "export", "serve": "server"}


def commands() -> list[tuple[str, str]]:
    """(page, command line) of everything that is to be typed; continued lines are joined."""
    found = []
    for page in PAGES:
        text = (REPO / page).read_text(encoding="utf-8")
        lines = "".join(SHELL.findall(text)).replace("\\\n", " ").splitlines()
        lines = [re.sub(r"\s#\s.*$", "", line) for line in lines]
        found += [(page, line.strip()) for line in [*lines, *INLINE.findall(text)] if line.strip()]
    return found


@cache
def help_of(program: str) -> str:
    """What `python -m PROGRAM --help` prints."""
    done = subprocess.run(
        [sys.executable, "-m", *program.split(), "--help"],
        cwd=REPO, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{program}: {done.stderr}"
    return done.stdout


def called(line: str) -> tuple[str, str] | None:
    """The program that a command line calls with `python -m`, or make for it, and its words."""
    if match := MODULE.search(line):
        program, words = match[1], match[2].split()
        if program in SUBCOMMANDS and words and re.fullmatch(r"[a-z]+", words[0]):
            program = f"{program} {words.pop(0)}"
        if program == "server" and words[:1] == ["doctor"]:
            words.pop(0)
        return program, " " + " ".join(words)
    if (match := MAKE.search(line)) and match[1] in MADE_BY and match[2]:
        return MADE_BY[match[1]], " " + match[2]
    return None


@pytest.mark.slow
def test_every_program_that_a_page_calls_has_the_flags_that_it_is_given() -> None:
    checked, unknown = 0, []
    for page, line in commands():
        if "|" in line or (call := called(line)) is None or "server.ray" in call[0]:
            continue  # Ray's need Ray
        program, words = call
        for flag in FLAG.findall(words):
            if flag in ("--json", "--help", "--version"):
                continue
            checked += 1
            if not re.search(rf"{re.escape(flag)}\b(?!-)", help_of(program)):
                unknown.append(f"{page}: {program} {flag}")
    assert checked > 60
    assert not unknown


def test_every_target_that_a_page_makes_is_there() -> None:
    makefile = (REPO / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*(?: [a-z][a-z-]*)*):", makefile, re.MULTILINE))
    there = {each for group in targets for each in group.split()}
    asked = {
        (page, match[1])
        for page, line in commands()
        for match in re.finditer(r"(?:^|[`;&] ?)make ([a-z][a-z-]+)", line)
    }
    assert asked
    assert not {each for each in asked if each[1] not in there}


def test_every_file_of_the_repository_that_a_command_names_is_there() -> None:
    named = {(page, name) for page, line in commands() for name in FILE.findall(line)}
    assert named
    assert not sorted(each for each in named if not (REPO / each[1]).exists())
