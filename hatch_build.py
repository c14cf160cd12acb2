"""Writes the commit that is built into wheels and source archives, as `server/revision.txt`.

The source tree stays as it is. `server/version.py` reads the file.
"""

import os
import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

TARGET = "server/revision.txt"
VARIABLE = "REVISION"  # for a build without .git, such as a container's
_FORM = re.compile(r"[0-9A-Za-z][0-9A-Za-z._+-]{0,99}")


class RevisionHook(BuildHookInterface[Any]):
    """What hatchling calls; it finds the class by itself."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Adds the file to a build; not to an editable install, which is a checkout."""
        root = Path(self.root)
        if version == "editable" or (root / TARGET).exists():  # unpacked from a source archive
            return
        revision = configured_revision(os.environ) or committed(root)
        if revision is None:
            self.app.display_warning(
                f"no {VARIABLE} and no git checkout: the build names no commit"
            )
            return
        self._folder = tempfile.TemporaryDirectory(prefix="revision-")
        file = Path(self._folder.name) / "revision.txt"
        file.write_text(f"{revision}\n", encoding="utf-8")
        build_data["force_include"][str(file)] = TARGET

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Removes the file that was built in."""
        if hasattr(self, "_folder"):
            self._folder.cleanup()


def configured_revision(environment: Mapping[str, str]) -> str | None:
    """The commit that the environment tells; None where it tells none.

    Raises:
        ValueError: it is told, and no name of a commit.
    """
    revision = environment.get(VARIABLE, "")
    if revision and not _FORM.fullmatch(revision):
        raise ValueError(f"{VARIABLE}={revision!r} is no name of a commit")
    return revision or None


def committed(root: Path) -> str | None:
    """The commit that is checked out, with `-dirty` where any file differs from it or is new.

    None where `root` is not the top of a checkout (a folder around it may be another's) or there
    is no git.
    """
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return f"{commit}-dirty" if git("status", "--porcelain") else commit
    except (OSError, subprocess.CalledProcessError):
        return None
