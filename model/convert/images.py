"""Finds the images of a data set and reads from their headers how large they are."""

import hashlib
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from model.convert.annotations import Corners

# What ultralytics trains on and common tools annotate.
SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
ORIENTATION = 0x0112  # the EXIF tag


class Folder:
    """The images below a folder, found by whatever annotations call them.

    A name is looked up among the files that are there and never joined to a path, so none leads
    out of the folder.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise FileNotFoundError(f"{root}: there is no such folder of images")
        self.root = root
        self.files = sorted(
            Path(parent, name)
            for parent, _, names in os.walk(root)
            for name in names
            if Path(name).suffix.lower() in SUFFIXES
        )
        if not self.files:
            raise ValueError(f"{root}: there is no image in it ({', '.join(sorted(SUFFIXES))})")
        self.by_name: dict[str, list[Path]] = defaultdict(list)
        for file in self.files:
            path = file.relative_to(root)
            for name in {path.as_posix(), path.with_suffix("").as_posix(), file.name, file.stem}:
                self.by_name[key_of(name)].append(file)

    def find(self, names: tuple[str, ...], where: str) -> Path | None:
        """The file of the first name that there is one of; None when there is none.

        A name may have folders and an ending or not; letters may be large or small. Of a full
        path from another machine, the file name counts.

        Raises:
            ValueError: a name leads upwards, or several files may be meant.
        """
        for name in names:
            path = PurePosixPath(name.replace("\\", "/"))
            if ".." in path.parts:
                raise ValueError(f"{where}: the file name {name!r} leads out of the folder")
            found = self.by_name.get(key_of(str(path))) or self.by_name.get(key_of(path.name))
            if found and len(found) > 1:
                found = [file for file in found if file.relative_to(self.root) == Path(path)]
                if len(found) != 1:
                    raise ValueError(
                        f"{where}: several images below {self.root} may be {name!r}; "
                        f"the annotations have to name the folder too"
                    )
            if found:
                return found[0]
        return None


def key_of(name: str) -> str:
    """A name as it is compared: letters large or small, and composed (macOS' are not)."""
    return unicodedata.normalize("NFC", name).casefold()


def originals(files: Sequence[Path]) -> dict[Path, Path]:
    """Of each image the first one with the same bytes, which is itself where it is no copy."""
    sizes = Counter(file.stat().st_size for file in files)
    first: dict[bytes, Path] = {}
    found = {}
    for file in files:
        found[file] = file
        if sizes[file.stat().st_size] > 1:
            with file.open("rb") as content:
                found[file] = first.setdefault(
                    hashlib.file_digest(content, "sha256").digest(), file
                )
    return found


@dataclass(frozen=True)
class Size:
    """How large an image is.

    Attributes:
        stored_wh: (width, height) in pixels as the file holds them.
        orientation: EXIF's, 1 to 8; 1 is upright.
    """

    stored_wh: tuple[int, int]
    orientation: int

    @property
    def upright_wh(self) -> tuple[int, int]:
        """(width, height) of the image as it is shown, and as training sees it."""
        width, height = self.stored_wh
        return (height, width) if self.orientation >= 5 else (width, height)

    def to_upright(self, box: Corners) -> Corners:
        """Takes a box from the pixels as stored to the upright image, of orientations 5 to 8.

        Of others the size does not tell that a box was made on the pixels as stored.
        """
        y1, x1, y2, x2 = box
        width, height = self.upright_wh
        if self.orientation in (6, 7):
            x1, x2 = width - x2, width - x1
        if self.orientation in (7, 8):
            y1, y2 = height - y2, height - y1
        return x1, y1, x2, y2


def read_size(file: Path) -> Size | None:
    """The size of an image by its header; None when it can't be read."""
    try:
        with Image.open(file) as image:
            orientation = image.getexif().get(ORIENTATION, 1)
            orientation = orientation if orientation in range(1, 9) else 1
            width, height = image.size
            if image.format == "TIFF" and orientation >= 5:  # Pillow has swapped them already
                width, height = height, width
            return Size((width, height), orientation)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
