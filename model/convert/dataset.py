"""Writes a data set in YOLO form, whole or not at all."""

import random
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from model.convert.images import originals
from model.convert.placement import Labelled

PARTS = {"data.yaml", "images", "labels"}  # what a data set of ours consists of
MARK = "# Made by python -m model convert, which may replace it.\n"  # others' have those parts too


def check_output(output: Path, sources: Sequence[Path], force: bool) -> None:
    """Raises ValueError unless a data set may be written there.

    Args:
        output: may be missing or an empty folder; with `force`, a data set as we write it.
        sources: what is read; it must not be inside of what is replaced.
        force: replace what is there.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not force:
        raise ValueError(f"{output} exists already: --force replaces it")
    parts = {path.name for path in output.iterdir()} if output.is_dir() else set()
    if parts != PARTS or not (output / "data.yaml").read_bytes().startswith(MARK.encode()):
        raise ValueError(f"{output} is not a data set of this command's making: left as it is")
    for source in sources:
        if source.resolve().is_relative_to(output.resolve()):
            raise ValueError(f"{output} holds {source}, which is read: choose another output")


def split(
    labelled: Sequence[Labelled], val_fraction: float, seed: int
) -> tuple[list[Labelled], list[Labelled]]:
    """Parts for training and validation, by chance; the same seed gives the same.

    Copies of an image go into the same part as it: seen in training, they would prove nothing.

    Raises:
        ValueError: the fraction is not between 0 and 1, or there are less than two images.
    """
    if not 0 < val_fraction < 1:
        raise ValueError(f"--val-fraction {val_fraction} is not between 0 and 1")
    first = originals([image.file for image in labelled])
    different = list(dict.fromkeys(first.values()))
    if len(different) < 2:
        raise ValueError("one image alone can't be split into training and validation")
    count = min(max(round(len(different) * val_fraction), 1), len(different) - 1)
    chosen = set(random.Random(seed).sample(different, count))
    train = [image for image in labelled if first[image.file] not in chosen]
    return train, [image for image in labelled if first[image.file] in chosen]


def copies_in(train: Sequence[Labelled], val: Sequence[Labelled]) -> list[Labelled]:
    """The images of `train` that are in `val` too, by their bytes."""
    known = {image.file for image in val}
    first = originals([image.file for image in (*val, *train)])
    return [image for image in train if first[image.file] in known]


def write(
    parts: dict[str, list[Labelled]],
    class_names: Sequence[str],
    roots: Mapping[str, Path],
    output: Path,
    *,
    link: bool,
) -> None:
    """Writes images/PART, labels/PART and data.yaml; what was in `output` is replaced at the end.

    Args:
        parts: the images of "train" and "val".
        class_names: by class id.
        roots: of each part the folder that its images are below; folders become part of an
            image's name where names of the part would meet.
        output: the folder of the data set.
        link: link to the images instead of copying them.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as scratch:
        made = Path(scratch, "made")
        for part, images in parts.items():
            names = unique_names([image.file for image in images], roots[part])
            (made / "images" / part).mkdir(parents=True)
            (made / "labels" / part).mkdir(parents=True)
            for image in images:
                name = names[image.file]
                copy = made / "images" / part / f"{name}{image.file.suffix.lower()}"
                if link:
                    copy.symlink_to(image.file.resolve())
                else:
                    shutil.copyfile(image.file, copy)
                rows = "".join(
                    " ".join([str(row[0]), *(f"{value:.8f}" for value in row[1:])]) + "\n"
                    for row in image.rows
                )
                (made / "labels" / part / f"{name}.txt").write_text(rows)
        # Without `path`, which ultralytics would take from the working folder, the parts are
        # looked for beside the file, and the folder can be moved.
        table = {part: f"images/{part}" for part in parts}
        described = table | {"names": dict(enumerate(class_names))}
        text = yaml.safe_dump(described, sort_keys=False, allow_unicode=True)
        (made / "data.yaml").write_text(MARK + text, encoding="utf-8")
        if output.exists():  # an empty folder, or one that may be replaced
            output.rename(Path(scratch, "before"))
        made.rename(output)


def unique_names(files: Sequence[Path], root: Path) -> dict[Path, str]:
    """A name without ending for each image, different even where cases are the same.

    Labels are found by that name, so a.jpg and a.png need two.
    """
    taken: set[str] = set()
    names = {}
    for file in files:
        path = file.relative_to(root)
        candidates = [file.stem, "_".join(path.with_suffix("").parts), "_".join(path.parts)]
        number = 2
        name = next((n for n in candidates if n.casefold() not in taken), None)
        while name is None:
            numbered = f"{file.stem}_{number}"
            name = numbered if numbered.casefold() not in taken else None
            number += 1
        taken.add(name.casefold())
        names[file] = name
    return names
