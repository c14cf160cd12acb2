"""The pictures that the page offers as a first try: the folder `samples` beside a model."""

from collections.abc import Mapping
from pathlib import Path

from server.logs import get_logger

FOLDER = "samples"
MOST = 12
# They stay in memory. Larger pictures belong to those who drop them.
MAX_BYTES = 4 * 1024 * 1024
MAX_BYTES_IN_ALL = 16 * 1024 * 1024
MEDIA_TYPES = {
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
}

logger = get_logger(__name__)


def read_samples(model: Path) -> Mapping[str, bytes]:
    """Reads the pictures beside a model.

    Args:
        model: an artifact or a folder of them, as the setting `model` names it.

    Returns:
        The first files by name that are JPEG, PNG or WebP by their names, at most `MOST` and within
        the limits of bytes; empty where there is no such folder or it can't be read. A file that
        can't be read, is empty or too large is left out, and the log says so in one line.
    """
    folder = (model if model.is_dir() else model.parent) / FOLDER
    try:
        files = sorted(each for each in folder.iterdir() if media_type(each.name))
    except (FileNotFoundError, NotADirectoryError):
        return {}  # most models have none
    except OSError as error:
        logger.warning("samples_left_out", folder=str(folder), reason=str(error))
        return {}
    samples: dict[str, bytes] = {}
    left_out: dict[str, str] = {}  # reasons by file
    room = MAX_BYTES_IN_ALL
    for file in files:
        if len(samples) == MOST:
            break
        limit = min(MAX_BYTES, room)
        try:
            if not file.is_file():  # opening a pipe would wait for its writer
                continue
            file.name.encode()  # a name that is no text could not be listed
            content = _content(file, limit)
        except (OSError, UnicodeEncodeError, ValueError) as error:
            left_out[repr(file.name)] = str(error)
            continue
        samples[file.name] = content
        room -= len(content)
    if left_out:
        # One line, also for a folder that is a data set of thousands.
        name, reason = next(iter(left_out.items()))
        logger.warning("samples_left_out", files=len(left_out), first=name, reason=reason)
    return samples


def _content(file: Path, limit: int) -> bytes:
    """The bytes of a file. Raises `ValueError` where there are none, or more than `limit`."""
    bytes_there = file.stat().st_size
    if 0 < bytes_there <= limit:  # else it is not even opened
        with file.open("rb") as opened:
            content = opened.read(limit + 1)  # it may have grown
        bytes_there = len(content)
        if 0 < bytes_there <= limit:
            return content
    raise ValueError(f"{bytes_there} bytes, of at most {limit}")


def media_type(name: str) -> str | None:
    """What a file's name says that it is; None where it is no picture that browsers show."""
    return MEDIA_TYPES.get(Path(name).suffix.lower())
