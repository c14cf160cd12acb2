"""Reads what `torch.save` wrote without running anything that it names.

A `.pt` is a pickle, and a pickle can name any class or function of this machine and call it.
torch's own restricted reader does the work: it knows tensors and plain containers, and of classes
only those that it is handed. It is handed stand-ins, shells, which a pickle can fill and nothing
else.
"""

import io
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from model.allow_list import Ignored
from model.errors import CheckpointRefused, printable

# Of the file's own size; torch.save does not compress, and weights hardly can be.
MAX_EXPANSION = 20


def read(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        CheckpointRefused: there is none, it cannot be read, or it is made to fill the memory.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointRefused(f"{path}: {error.strerror}") from None
    if expands(content):
        raise CheckpointRefused(
            f"{path}: refused: it unpacks to more than {MAX_EXPANSION} times its size"
        )
    return content


def expands(content: bytes) -> bool:
    """Whether a zip archive says of itself that it would fill the memory when it is read."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            size = sum(member.file_size for member in archive.infolist())
    except Exception:  # no archive, or a damaged one: told by those who read it
        return False
    return size > MAX_EXPANSION * len(content)


def named_globals(content: bytes) -> frozenset[str]:
    """Full names of the classes and functions a file names, less those torch itself allows.

    Empty where they can't be told: the file is damaged, or of the form before torch 1.6.
    """
    try:
        return frozenset(torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(content)))
    except Exception:  # bytes that nobody vouches for raise anything
        return frozenset()


def unpickle(path: Path, content: bytes, known: Mapping[str, type]) -> Any:
    """What the file holds, its objects being instances of shells.

    Args:
        path: for messages.
        content: the file.
        known: the classes that it may name, by their full names in the file; a shell for each.

    Raises:
        CheckpointRefused: the file is damaged, asks for a class or function that is not known, or
            calls something; the message names it, and it was not run.
    """
    named: list[Any] = [(shell(kind, name), name) for name, kind in known.items()]
    try:
        with torch.serialization.safe_globals(named), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd pickles; those fail just below
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # as above
        raise CheckpointRefused(f"{path}: {reason(error, content)}") from None


def shell(kind: type, name: str) -> type:
    """A subclass for a pickle to fill, which it can neither construct nor call.

    A pickled module is made without its constructor and then filled. A pickle could also call
    the constructor with arguments of its own, and ultralytics' evaluates some of them as code;
    run a layer it has filled, and ultralytics' network writes images where it is told to; or
    plant a method on an instance for the library to call.

    Args:
        kind: what it stands for.
        name: the full name in the file, for messages.
    """
    if kind is Ignored:
        return type("Ignored", (Ignored,), {"name": name})
    is_layer = issubclass(kind, nn.Module)

    def refuse(*_: object, **__: object) -> NoReturn:
        raise pickle.UnpicklingError(f"calls {name}")

    def make(cls: type[object], *args: object, **kwargs: object) -> object:
        # What is allowed makes its instances as `object` does, or as a namespace in C.
        if args or kwargs:
            refuse()
        plain: Any = kind.__new__
        return plain(cls)

    def construct(self: object, *args: object, **kwargs: object) -> None:
        # Layers are pickled without a call of their constructor, a namespace with an empty one.
        if args or kwargs or is_layer:
            refuse()

    def fill(self: object, state: object) -> None:
        if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
            raise pickle.UnpicklingError(f"calls {name}.__setstate__")
        for key, value in state.items():
            if key.startswith("__") or (callable(value) and callable(getattr(kind, key, None))):
                raise pickle.UnpicklingError(f"calls {name}.{key}")
        self.__dict__.update(state)

    methods: dict[str, Any] = {"__new__": make, "__init__": construct, "__setstate__": fill}
    if is_layer:
        methods["__call__"] = refuse
    return type(kind.__name__, (kind,), methods)


def reason(error: Exception, content: bytes) -> str:
    """What torch says of a file it won't load, in one line and without its advice to trust it."""
    said = str(error)
    refused = re.search(r"(?:(?:Unsupported global: |unsupported )GLOBAL|(calls)) (\S+)", said)
    if refused:
        name = printable(refused[2])
        if f"builtins.{name}" in named_globals(content):  # torch leaves that part out
            name = f"builtins.{name}"
        return calls(name) if refused[1] else asks_for(name)
    called = re.search(r"call reduce for unrecognized function (.+)", said)
    if called:
        return calls(printable(called[1])[:80])
    if kind := other_file(content):
        return f"not a complete checkpoint: {kind}"
    if "Unsupported operand" in said:
        return (
            "not a complete checkpoint: damaged, or saved with another pickle protocol than "
            "torch.save's own, 2"
        )
    lines = printable(said, keep="\n").splitlines()
    if isinstance(error, RuntimeError) and lines:
        return f"not a complete checkpoint: {lines[0][:160]}"
    return "not a complete checkpoint: torch did not write these bytes"


def asks_for(name: str) -> str:
    """The line for a class or function that is not on the list."""
    return (
        f"refused: it asks for {name}, which is not on the list of what a checkpoint may hold; "
        "nothing of it was run"
    )


def calls(name: str) -> str:
    """The line for a call, of whatever."""
    return f"refused: it calls {name}; nothing of it was run"


def other_file(content: bytes) -> str | None:
    """What a file is that is no checkpoint; None where that doesn't show."""
    if not content:
        return "the file is empty"
    for start, kind in BEGINNINGS.items():
        if content.startswith(start):
            return f"this is {kind}"
    if not content.startswith(b"PK\x03\x04"):
        return None
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.namelist()
    except (zipfile.BadZipFile, ValueError, OSError):
        return "the file is cut off, its end is missing"
    if any(name.endswith("/constants.pkl") for name in members):
        return "this is TorchScript; give the .pt that it was made from"
    if not any(name.endswith("/data.pkl") for name in members):
        return "this is a zip archive with no checkpoint in it"
    return None


BEGINNINGS = {
    b"\xff\xd8\xff": "a JPEG image",
    b"\x89PNG": "a PNG image",
    b"GIF8": "a GIF image",
    b"BM": "a BMP image",
    b"RIFF": "a WebP image or another RIFF file",
    b"%PDF": "a PDF",
    b"\x1f\x8b": "a gzip archive; unpack it first",
    b"\x89HDF": "HDF5, as Keras writes it",
    b"version https://git-lfs": "a Git LFS pointer; fetch the file itself with `git lfs pull`",
}
