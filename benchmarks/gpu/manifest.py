"""The folder of inputs that `benchmarks.gpu.inputs` makes and `benchmarks.gpu` reads.

    manifest.json        what is what, and the sha256 of every other file
    fla-fp32.onnx ...    artifacts: `fla` and `plain`, each in some precisions
    block-*.onnx, *.bin  attention blocks, one input `x` and one output, of fixed shape
    images/*.jpg       what is sent and decoded
    expected.npz         what the fp32 artifact finds in the images on a CPU

Nothing here needs more than the standard library: the folder is read where there is no torch.
"""

import hashlib
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

SCHEMA = 1
MANIFEST = "manifest.json"


class InputsInvalid(Exception):
    """The folder lacks something, or a file is not the one that was made; the message says what."""


@dataclass(frozen=True, slots=True)
class BlockFile:
    """One attention block.

    Attributes:
        file: its name.
        form: "ours" (as it is exported) or "published" (the trace of the published code).
        precision: "fp32" or "fp16".
        batch, tokens, channels: of its input, (batch, channels, side, side), tokens = side ** 2.
    """

    file: str
    form: str
    precision: str
    batch: int
    tokens: int
    channels: int


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the folder holds.

    Attributes:
        folder: where.
        sha256: of the manifest.
        models: artifacts by name, such as "fla-fp16".
        blocks: of the attention.
        images: JPEG files, at least one.
        expected: detections in the images, or None.
        about: how it was made, in words by subject.
    """

    folder: Path
    sha256: str
    models: Mapping[str, Path]
    blocks: Sequence[BlockFile]
    images: Sequence[Path]
    expected: Path | None
    about: Mapping[str, Any]

    def path(self, block: BlockFile) -> Path:
        """Where a block's file is."""
        return self.folder / block.file


def write_manifest(
    folder: Path,
    *,
    models: Mapping[str, str],
    images: Sequence[str],
    blocks: Sequence[BlockFile] = (),
    others: Sequence[str] = (),
    expected: str | None = None,
    about: Mapping[str, Any],
) -> Path:
    """Describes the files of a folder; every name is relative to it, `others` are the blocks'.

    Raises:
        FileNotFoundError: one of them is not there.
    """
    names = [*models.values(), *(each.file for each in blocks), *others, *images]
    names += [expected] if expected else []
    manifest = {
        "schema": SCHEMA,
        "about": dict(about),
        "models": dict(models),
        "blocks": [asdict(each) for each in blocks],
        "images": list(images),
        "expected": expected,
        "sha256": {name: digest(folder / name) for name in names},
    }
    path = folder / MANIFEST
    path.write_text(json.dumps(manifest, indent=1) + "\n")
    return path


def read_inputs(folder: Path) -> Inputs:
    """Reads a folder and checks every file in it.

    Raises:
        InputsInvalid: it is not as `write_manifest` described it.
    """
    path = folder / MANIFEST
    try:
        text = path.read_bytes()
        manifest = json.loads(text)
        if manifest["schema"] != SCHEMA:
            raise InputsInvalid(f"{path}: schema {manifest['schema']}, expected {SCHEMA}")
        for name, wanted in manifest["sha256"].items():
            if digest(folder / name) != wanted:
                raise InputsInvalid(f"{folder / name}: not the file that the manifest describes")
        inputs = Inputs(
            folder,
            hashlib.sha256(text).hexdigest(),
            {name: folder / file for name, file in manifest["models"].items()},
            [BlockFile(**each) for each in manifest["blocks"]],
            [folder / name for name in manifest["images"]],
            folder / manifest["expected"] if manifest["expected"] else None,
            manifest["about"],
        )
    except OSError as error:
        raise InputsInvalid(f"{error.filename}: {error.strerror}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise InputsInvalid(f"{path}: no manifest of benchmarks.gpu.inputs: {error!r}") from None
    if not inputs.images or not inputs.models:
        raise InputsInvalid(f"{path}: names no images or no models")
    return inputs


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """The folder of inputs; an archive is unpacked for as long as it is used.

    Raises:
        InputsInvalid: it is neither.
    """
    if path.is_dir():
        yield path.resolve()
        return
    with TemporaryDirectory(prefix="gpu-inputs-") as folder:
        try:
            with tarfile.open(path) as archive:
                archive.extractall(folder, filter="data")
        except (OSError, tarfile.TarError, EOFError) as error:
            raise InputsInvalid(f"{path}: no folder, and no archive of one: {error}") from None
        inner = Path(folder)
        if not (inner / MANIFEST).exists():
            inner = next((each.parent for each in inner.glob(f"*/{MANIFEST}")), inner)
        yield inner


def digest(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
