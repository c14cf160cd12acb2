"""Files that appear whole or not at all, and never in place of others without being told to."""

import os
import uuid
from pathlib import Path

from yolov8_fla_client.errors import DetectClientError


class OutputRefused(DetectClientError):
    """What should be written is there already, or can't be where it should be; nothing was done."""


class NameTaken(DetectClientError):
    """The file of an image's results has been written for another image of this run."""


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file by way of another beside it, and makes the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}")  # a long name plus this might be too long
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def synced(descriptor: int) -> None:
    """Waits until a file is on the disk; a pipe has none."""
    try:
        os.fsync(descriptor)
    except OSError:
        return


def refuse_what_is_there(path: Path, *, force: bool) -> None:
    """Refuses a file that exists.

    Raises:
        OutputRefused: it is there and not `force`, or it is no file, or its folder is missing.
    """
    if path.is_dir():
        raise OutputRefused(f"{path} is a folder; a file is written")
    if path.exists() and not path.is_file():  # as /dev/null, that a file would take the place of
        raise OutputRefused(f"{path} is no regular file")
    if not path.parent.is_dir():
        raise OutputRefused(f"there is no folder {path.parent} to write {path.name} in")
    if path.exists() and not force:
        raise OutputRefused(f"{path} is there already; --force writes over it")


def refuse_full_folder(folder: Path, *, force: bool) -> None:
    """Refuses a folder that holds something.

    Raises:
        OutputRefused: it does and not `force`, or it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputRefused(f"{folder} is a file; a folder is written")
    if folder.is_dir() and not force and any(folder.iterdir()):
        raise OutputRefused(f"{folder} is not empty; --force writes over what is in it")


class Claims:
    """Which image each file of an output folder belongs to, so that none replaces another's."""

    def __init__(self) -> None:
        self._owners: dict[str, str] = {}

    def take(self, output: str, image: str) -> None:
        """Gives a file to an image.

        Raises:
            NameTaken: it is another's, as of a.jpg and a.png beside each other.
        """
        owner = self._owners.setdefault(output, image)
        if owner != image:
            raise NameTaken(f"its results would be written to {output}, which is of {owner}")
