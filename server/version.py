"""Which software this is: its version, and the commit that it was built from."""

import re
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

DISTRIBUTION = "yolov8-fla"
UNKNOWN = "unknown"
# `hatch_build.py` writes it into wheels and source archives.
REVISION_FILE = Path(__file__).with_name("revision.txt")

_COMMIT = re.compile("[0-9a-f]{40}(?:[0-9a-f]{24})?")  # SHA-1 or SHA-256
_REFERENCE = re.compile(r"refs/[\w./-]+")


class Build(NamedTuple):
    """One build of this software.

    Attributes:
        version: of the installed distribution, `UNKNOWN` where there is none.
        revision: the commit that was built, with `-dirty` where files differed from it; the one
            checked out, with `-checkout`, where no build was made and files may differ; or None.
    """

    version: str
    revision: str | None

    def __str__(self) -> str:
        """For people: name, version and revision."""
        return f"{DISTRIBUTION} {self.version} ({self.revision or 'revision unknown'})"


@cache
def this_build() -> Build:
    """The software that runs. Starts no process; takes a millisecond, once."""
    try:
        installed = version(DISTRIBUTION)
    except PackageNotFoundError:
        installed = UNKNOWN
    baked = _read(REVISION_FILE)
    if baked:
        return Build(installed, baked)
    commit = checked_out(REVISION_FILE.parents[1])
    return Build(installed, f"{commit}-checkout" if commit else None)


def checked_out(root: Path) -> str | None:
    """The commit of a git checkout, read from its files.

    Args:
        root: the top folder of the checkout, or any other folder.

    Returns:
        40 hex digits (64 in a repository of SHA-256), None where there is no such thing.
    """
    git = root / ".git"
    if not git.is_dir():  # a worktree and a submodule have a file there instead
        link = _read(git)
        if not link.startswith("gitdir: "):
            return None
        git = root / link.removeprefix("gitdir: ")
    common = git / (_read(git / "commondir") or ".")  # branches of a worktree are its owner's
    head = _read(git / "HEAD")
    reference = head.removeprefix("ref: ")
    if reference != head and _REFERENCE.fullmatch(reference):
        packed = (line.split(" ") for line in _read(common / "packed-refs").splitlines())
        head = _read(common / reference) or next(
            (line[0] for line in packed if line[1:] == [reference]), ""
        )
    return head if _COMMIT.fullmatch(head) else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""
