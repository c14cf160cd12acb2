"""Folders that hold images or results: on this machine's file systems, or in an object store.

Paths inside a folder are bytes, parts joined by "/": Linux allows any bytes in a file's name.
"""

import os
import stat
import uuid
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Protocol

from pyarrow import fs

from server.errors import TooLarge
from server.ray.detect_folder.errors import JobRefused


class Folder(Protocol):
    """A folder by its address, wherever it lies."""

    @property
    def address(self) -> str:
        """A path, or such as s3://bucket/folder; opens the same folder on another node."""

    def exists(self) -> bool:
        """Whether it is there, as seen from this machine."""

    def files(self) -> Iterator[bytes]:
        """All files below, as they come; none whose path has a part that begins with a dot."""

    def names(self) -> list[str]:
        """Files and folders directly in it; none when it is not there."""

    def read(self, path: bytes, max_bytes: int) -> bytes:
        """A whole file.

        Raises:
            TooLarge: it has more bytes, code "body_too_large".
            OSError: it can't be read.
        """

    def open(self, path: str) -> IO[bytes]:
        """A file to read from anywhere."""

    def write(self, path: str, content: IO[bytes]) -> None:
        """Writes a file that is there whole or not at all, also when the machine dies."""

    def delete(self, path: str) -> None:
        """Deletes a file; it need not be there."""


def open_folder(address: str) -> Folder:
    """The folder at a path, or at an address that pyarrow has a file system for.

    Raises:
        JobRefused: no file system is known for the address, or its settings are wrong, or it holds
            a password, which would stand in the results.
    """
    if "://" not in address:
        return LocalFolder(Path(address).absolute())
    scheme, _, rest = address.partition("://")
    login, at, place = rest.partition("/")[0].rpartition("@")
    if ":" in login:
        raise JobRefused(
            f"{scheme}://…{at}{place}: no password in an address, it is written into the results; "
            "every node takes it from its environment or its role"
        )
    try:
        filesystem, root = fs.FileSystem.from_uri(address)
    except (ValueError, OSError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise JobRefused(f"{address}: {error}") from None
    if isinstance(filesystem, fs.LocalFileSystem):
        return LocalFolder(Path(root))
    return RemoteFolder(address, filesystem, root)


class LocalFolder:
    """A folder that the operating system knows: a disk, or a share that every node has mounted."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.address = str(root)

    def exists(self) -> bool:
        """See `Folder`."""
        return self._root.is_dir()

    def files(self) -> Iterator[bytes]:
        """See `Folder`; links to files are followed, links to folders are not."""
        return _files_below(os.fsencode(self._root), b"")

    def names(self) -> list[str]:
        """See `Folder`."""
        try:
            return [each.name for each in self._root.iterdir()]
        except FileNotFoundError:
            return []

    def read(self, path: bytes, max_bytes: int) -> bytes:
        """See `Folder`."""
        # Non-blocking: a named pipe that nobody writes into would stop us for good.
        full = os.fsencode(self._root) + b"/" + path
        with os.fdopen(os.open(full, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise OSError("not a regular file")
            refuse_over(status.st_size, max_bytes)
            return file.read(max_bytes)

    def open(self, path: str) -> IO[bytes]:
        """See `Folder`."""
        return (self._root / path).open("rb")

    def write(self, path: str, content: IO[bytes]) -> None:
        """See `Folder`."""
        final = self._root / path
        final.parent.mkdir(parents=True, exist_ok=True)
        # Of two that write the same, as when a task is retried, neither may see the other's.
        temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex}")
        try:
            with temporary.open("xb") as file:
                while piece := content.read(2**20):
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(final)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def delete(self, path: str) -> None:
        """See `Folder`."""
        (self._root / path).unlink(missing_ok=True)


class RemoteFolder:
    """A folder in an object store, where a file appears only when it has been written whole."""

    def __init__(self, address: str, filesystem: fs.FileSystem, root: str) -> None:
        self._fs = filesystem
        self._root = root.rstrip("/")
        self.address = address

    def exists(self) -> bool:
        """See `Folder`."""
        return bool(self._fs.get_file_info(self._root).type == fs.FileType.Directory)

    def files(self) -> Iterator[bytes]:
        """See `Folder`; one folder at a time, so memory is that of the largest."""
        folders = [self._root]
        while folders:
            folder = folders.pop()
            for each in self._fs.get_file_info(fs.FileSelector(folder)):
                if each.base_name.startswith("."):
                    continue
                if each.type == fs.FileType.Directory:
                    folders.append(each.path)
                elif each.type == fs.FileType.File:
                    yield each.path.removeprefix(f"{self._root}/").encode()

    def names(self) -> list[str]:
        """See `Folder`."""
        selector = fs.FileSelector(self._root, allow_not_found=True)
        return [each.base_name for each in self._fs.get_file_info(selector)]

    def read(self, path: bytes, max_bytes: int) -> bytes:
        """See `Folder`."""
        with self._fs.open_input_file(f"{self._root}/{path.decode()}") as file:
            refuse_over(file.size(), max_bytes)
            content: bytes = file.read()
            return content

    def open(self, path: str) -> IO[bytes]:
        """See `Folder`."""
        opened: IO[bytes] = self._fs.open_input_file(f"{self._root}/{path}")
        return opened

    def write(self, path: str, content: IO[bytes]) -> None:
        """See `Folder`."""
        final = f"{self._root}/{path}"
        self._fs.create_dir(final.rpartition("/")[0], recursive=True)
        # Not `with`: closing after an error would make half a file appear.
        file: Any = self._fs.open_output_stream(final)
        while piece := content.read(2**20):
            file.write(piece)
        file.close()

    def delete(self, path: str) -> None:
        """See `Folder`."""
        try:
            self._fs.delete_file(f"{self._root}/{path}")
        except FileNotFoundError:
            return


def write_bytes(folder: Folder, path: str, content: bytes) -> None:
    """Writes a small file, whole or not at all."""
    folder.write(path, BytesIO(content))


def refuse_over(size_bytes: int, max_bytes: int) -> None:
    """Raises `TooLarge` where a file has more bytes than an image may have."""
    if size_bytes > max_bytes:
        raise TooLarge(
            f"the file has {size_bytes} bytes; max_image_bytes is {max_bytes}",
            code="body_too_large",
        )


def _files_below(root: bytes, inside: bytes) -> Iterator[bytes]:
    """Paths below `inside`, which is b"" or ends with a slash."""
    folders: list[bytes] = []
    with os.scandir(root + b"/" + inside) as entries:
        for entry in entries:
            if entry.name.startswith(b"."):
                continue
            path = inside + entry.name
            if entry.is_dir(follow_symlinks=False):
                folders.append(path + b"/")
            elif not _links_to_folder(entry):
                yield path
    for folder in sorted(folders):
        yield from _files_below(root, folder)


def _links_to_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # as of a link to itself: an image that can't be read, and no end of the list
        return False
