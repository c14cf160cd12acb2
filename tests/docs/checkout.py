"""A fresh copy of the work tree, as somebody has it who has just cloned it."""

import os
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SERVE_VENV = ".venv-serve"


class NotAClone(Exception):
    """The tree that is tested did not come from git; the message is git's."""


@dataclass(frozen=True, slots=True)
class Checkout:
    """A copy of what git tracks, as it is in the work tree now, and a home of its own.

    Attributes:
        folder: the copy.
        home: HOME of what runs there.
        port: what stands for 8000, which may be taken on this machine.
        kept: names in `folder` that stay between pages.
    """

    folder: Path
    home: Path
    port: int
    kept: frozenset[str]

    def clean(self) -> None:
        """Removes what a page's blocks left, so that the next page finds a fresh checkout."""
        for each in self.folder.iterdir():
            if each.name not in self.kept:
                shutil.rmtree(each) if each.is_dir() else each.unlink()

    def environment(self) -> dict[str, str]:
        """What a reader's shell has, with the port that `make serve` takes and clients ask."""
        kept = {name: value for name, value in os.environ.items() if not _ours(name)}
        pip = Path.home() / ".config" / "pip" / "pip.conf"
        if pip.is_file():  # a mirror that this machine needs
            kept.setdefault("PIP_CONFIG_FILE", str(pip))
        ours = {"HOME": str(self.home), "YOLO_FLA_PORT": str(self.port)}
        return kept | ours | {"FLA_CLIENT_URL": f"http://127.0.0.1:{self.port}"}

    def here(self, text: str) -> str:
        """A block's text with the port that is served here; a container's own stays 8000."""
        return text.replace("127.0.0.1:8000", f"127.0.0.1:{self.port}")


def fresh_checkout(repo: Path, folder: Path) -> Checkout:
    """Copies the work tree.

    The environment for work, 7 GB, is not made anew: `.venv` there is made of links to the one that
    runs the tests. The one for serving is not copied: `make serve` has to make it.

    Args:
        repo: the checkout that is tested.
        folder: an empty folder.

    Raises:
        NotAClone: git does not know which files belong to it.
    """
    copy = folder / "yolov8-fla"
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listed, cwd=repo, capture_output=True, text=True)
    if files.returncode:
        raise NotAClone(files.stderr.strip())
    for name in filter(None, files.stdout.split("\0")):
        if (repo / name).is_symlink() or (repo / name).exists():  # or it is deleted, not committed
            target = copy / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(repo / name, target, follow_symlinks=False)
    _link_environment(Path(sys.prefix), copy / ".venv")
    home = folder / "home"
    home.mkdir()
    kept = {each.name for each in copy.iterdir()} | {SERVE_VENV}
    return Checkout(copy, home, free_port(), frozenset(kept))


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _link_environment(made: Path, link: Path) -> None:
    assert (made / "pyvenv.cfg").is_file(), "the tests have to run in a virtual environment"
    link.mkdir()
    for each in made.iterdir():
        if not each.name.startswith(".ready-"):
            (link / each.name).symlink_to(each)
    # What tells make that it is up to date.
    for extra in ("auto", "cpu", "gpu"):
        (link / f".ready-{extra}").touch()


def _ours(name: str) -> bool:
    # Of the environment that runs the tests: a reader's shell has none of them.
    return name.startswith(("PYTHON", "PYTEST", "MAKE", "MFLAGS", "YOLO_", "VIRTUAL_ENV"))
