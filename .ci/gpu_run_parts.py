"""Wheels in parts of a given size, so that they can be carried to another machine one by one.

A part is a folder of two files: `data`, a piece of one tar file, and `parts.json`, the list of all
parts and all wheels with their sums, which is the same in each.
"""

import hashlib
import json
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

LIST = "parts.json"
_PIECE = 2**20


class Incomplete(Exception):
    """Parts are missing, or something is not what it was; the text says what."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What was split.

    Attributes:
        python: that the wheels are for, such as "3.12".
        parts: sha256 of each part's data, by the part's name, in order.
        wheels: sha256 of each wheel, by file name.
    """

    python: str
    parts: Mapping[str, str]
    wheels: Mapping[str, str]

    @classmethod
    def read(cls, folder: Path) -> "Parts":
        """The list in a folder.

        Raises:
            Incomplete: there is none.
        """
        try:
            return cls(**json.loads((folder / LIST).read_text()))
        except OSError as error:
            raise Incomplete(f"{folder / LIST}: {error.strerror}") from None


def split(wheels: Sequence[Path], out: Path, *, part_bytes: int, python: str) -> Parts:
    """Writes wheels as parts: folders `part-00`, `part-01` ... of `out`.

    Args:
        wheels: files.
        out: a folder, made where it is missing; parts that it has from before are replaced.
        part_bytes: of one part at most, >= 1.
        python: as in `Parts`.
    """
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("part-*"):
        shutil.rmtree(old)
    whole = out / "whole.tar"
    with tarfile.open(whole, "w") as archive:
        for wheel in wheels:
            archive.add(wheel, wheel.name)
    sums: dict[str, str] = {}
    with whole.open("rb") as file:
        while file.tell() < whole.stat().st_size:
            name = f"part-{len(sums):02}"
            (out / name).mkdir(parents=True)
            sums[name] = _copy(file, out / name / "data", part_bytes)
    whole.unlink()
    parts = Parts(python, sums, {wheel.name: sha256(wheel) for wheel in wheels})
    for name in sums:
        (out / name / LIST).write_text(json.dumps(asdict(parts), indent=1) + "\n")
    return parts


def add(carried: Path, store: Path) -> list[str]:
    """Takes what was carried into the store.

    Args:
        carried: a part, or a folder of parts.
        store: a folder, made where it is missing. Parts of another set in it are forgotten.

    Returns:
        The names of the parts that are still missing.

    Raises:
        Incomplete: no part is there, or one is not what it was; it is not taken then.
    """
    folders = [carried] if (carried / LIST).is_file() else sorted(carried.glob("part-*"))
    if not folders:
        raise Incomplete(f"{carried}: no part is there")
    store.mkdir(parents=True, exist_ok=True)
    for folder in folders:
        parts = Parts.read(folder)
        digest = sha256(folder / "data")
        # Several, if they hold the same, such as zeros.
        names = [name for name, expected in parts.parts.items() if expected == digest]
        if not names:
            raise Incomplete(f"{folder}: its sha256 is {digest}, which no part has: carry it again")
        if not (store / LIST).is_file() or Parts.read(store) != parts:
            for old in store.glob("part-*"):
                old.unlink()
            shutil.copyfile(folder / LIST, store / LIST)
        for name in names:
            taken = store / f"{name}.taken"
            shutil.copyfile(folder / "data", taken)
            taken.rename(store / name)  # whole or not at all
    return missing(store)


def missing(store: Path) -> list[str]:
    """The names of the parts that the store does not have."""
    return [name for name in Parts.read(store).parts if not (store / name).is_file()]


def join(store: Path, wheels: Path) -> list[Path]:
    """Puts the wheels together again.

    Args:
        store: has all parts.
        wheels: the folder to fill; what it held goes.

    Returns:
        The wheels, by name.

    Raises:
        Incomplete: a part is missing, or a part or a wheel is not what it was.
    """
    parts = Parts.read(store)
    if absent := missing(store):
        raise Incomplete(f"{store}: {', '.join(absent)} of {len(parts.parts)} parts missing")
    whole = store / "whole.tar"
    with whole.open("wb") as file:
        for name, digest in parts.parts.items():
            if sha256(store / name) != digest:
                raise Incomplete(f"{store / name}: damaged: carry and add it again")
            with (store / name).open("rb") as part:
                shutil.copyfileobj(part, file, _PIECE)
    shutil.rmtree(wheels, ignore_errors=True)
    with tarfile.open(whole) as archive:
        archive.extractall(wheels, filter="data")
    whole.unlink()
    found = {path.name: sha256(path) for path in sorted(wheels.iterdir())}
    if found != dict(sorted(parts.wheels.items())):
        raise Incomplete(f"{wheels}: the wheels are not those that were split")
    return [wheels / name for name in found]


def sha256(path: Path) -> str:
    """64 hex digits of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _copy(source: BinaryIO, path: Path, limit: int) -> str:
    """Writes up to so many bytes into a file of its own; gives their sha256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        while limit and (piece := source.read(min(_PIECE, limit))):
            file.write(piece)
            digest.update(piece)
            limit -= len(piece)
    return digest.hexdigest()
