"""From what a caller gives as an image to bytes that can be sent, and to images of a folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeAlias, TypeGuard, cast

from yolov8_fla_client.bitmap import bmp_of
from yolov8_fla_client.results import ImageError, ImageResult

# What the server can read; an image of another format has to be asked for by its path.
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
MAX_IMAGE_BYTES = 256 * 2**20  # a larger one would fill the memory, and no usual server takes it
UNREADABLE_FILE = "unreadable_file"


class ArrayLike(Protocol):
    """A numpy array, or an image of a library that gives its pixels to numpy, as Pillow."""

    @property
    def __array_interface__(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class NamedImage:
    """An image under a name of the caller's, which its result then has.

    Attributes:
        name: any text, such as "frame 12".
        image: a path, bytes, a binary file or an array, as `Image` says.
    """

    name: str | None
    image: Image


# A path, the bytes of an image file, a binary file (read to its end, not closed), a (H, W, 3) uint8
# RGB array (anything with `__array_interface__`), or one of these under a name.
Image: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | ArrayLike | NamedImage
)


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image file's bytes, ready to be sent, and the name that its result gets."""

    name: str | None
    content: bytes


def as_sequence(images: Image | Iterable[Image]) -> Iterable[Image]:
    """One image or several, as several; an array is one image whatever its shape."""
    if _is_one(images):
        return (images,)
    if isinstance(images, Iterable):
        return cast("Iterable[Image]", images)
    raise TypeError(_not_an_image(images))


def read_image(image: Image) -> ImageFile:
    """Reads one image; files that are opened here are closed here.

    Raises:
        OSError: a file can't be read, is not a regular one, or has over `MAX_IMAGE_BYTES`.
        TypeError: it is none of what `Image` says, or a file opened as text.
        ValueError: an array is not of an image's shape.
    """
    match image:
        case NamedImage():
            return ImageFile(image.name, read_image(image.image).content)
        case str() | os.PathLike():
            return ImageFile(shown_name(os.fspath(image)), _read_file(os.fspath(image)))
        case bytes() | bytearray() | memoryview():
            return ImageFile(None, bytes(image))
    if hasattr(image, "__array_interface__"):
        return ImageFile(None, bmp_of(image))
    if hasattr(image, "read"):
        content = image.read()
        if not isinstance(content, bytes):
            raise TypeError("the file is opened as text; open it with mode 'rb'")
        return ImageFile(None, content)
    raise TypeError(_not_an_image(image))


def read_or_tell(image: Image) -> ImageFile | ImageResult:
    """As `read_image`, but a file that can't be read is a result with an error."""
    try:
        return read_image(image)
    except OSError as error:
        return failed(name_of(image), UNREADABLE_FILE, error.strerror or str(error))


def name_of(image: Image) -> str | None:
    """The name that the image's result will have."""
    match image:
        case NamedImage():
            return image.name
        case str() | os.PathLike():
            return shown_name(os.fspath(image))
    return None


def shown_name(path: str) -> str:
    r"""A path as text that can be written anywhere; bytes that are not UTF-8 come as \xe9."""
    return os.fsencode(path).decode(errors="backslashreplace")


def failed(name: str | None, code: str, detail: str) -> ImageResult:
    """The result of an image without detections."""
    return ImageResult(name, None, None, False, ImageError(code, detail), ())


def images_below(
    folder: Path, *, all_files: bool = False, left_out: Sequence[Path] = ()
) -> Iterator[NamedImage]:
    """Finds the images of a folder and of those in it, while it goes on: no list is made.

    Hidden files and folders are left out. Links to files are followed, to folders not.

    Args:
        folder: where to begin; their names are relative to it, with slashes.
        all_files: also those whose names do not end as an image's.
        left_out: folders that are not looked into, and files.

    Yields:
        Files of one folder in the order of their names, then those of the folders in it.

    Raises:
        OSError: the folder, or one in it, can't be listed.
    """
    places = {each.parent.resolve() / each.name for each in left_out}
    for relative in _below(folder, "", places | {each.resolve() for each in places}):
        if all_files or relative.lower().endswith(SUFFIXES):
            yield NamedImage(shown_name(relative), folder / relative)


def count_below(folder: Path, *, all_files: bool = False, left_out: Sequence[Path] = ()) -> int:
    """How many images there are, as `images_below` finds them."""
    return sum(1 for _ in images_below(folder, all_files=all_files, left_out=left_out))


def _below(root: Path, inside: str, left_out: Set[Path]) -> Iterator[str]:
    files, folders = [], []
    here = (root / inside).resolve()
    with os.scandir(root / inside) as entries:
        for entry in entries:
            if entry.name.startswith(".") or here / entry.name in left_out:
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(f"{inside}{entry.name}/")
            elif not _links_to_folder(entry):
                files.append(inside + entry.name)
    yield from sorted(files)
    for each in sorted(folders):
        yield from _below(root, each, left_out)


def _links_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # as of a link to itself: an image that can't be read
        return False


def _read_file(path: str) -> bytes:
    # Non-blocking: a named pipe that nobody writes into would stop us for good.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError("not a regular file")
        if status.st_size > MAX_IMAGE_BYTES:
            raise OSError(f"the file has {status.st_size} bytes, over {MAX_IMAGE_BYTES}")
        return file.read(MAX_IMAGE_BYTES)


def _is_one(images: object) -> TypeGuard[Image]:
    kinds = (str, os.PathLike, bytes, bytearray, memoryview, NamedImage)
    return (
        isinstance(images, kinds)
        or hasattr(images, "__array_interface__")
        or hasattr(images, "read")
    )


def _not_an_image(value: object) -> str:
    return (
        "an image is a path, bytes, a binary file, a (H, W, 3) uint8 array or a NamedImage, "
        f"not {type(value).__name__}"
    )
