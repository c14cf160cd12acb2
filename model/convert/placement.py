"""Brings the annotations of a data set onto its images."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from model.convert.annotations import Annotations, Corners, Image
from model.convert.images import Folder, Size, key_of, read_size

CLIPPED_PX = 1  # worth a note; less is rounding, or VOC's counting from 1 taken for one from 0

Row = tuple[int, float, float, float, float]


@dataclass
class Labelled:
    """One image with its labels.

    Attributes:
        file: the image.
        rows: class id, then centre x, centre y, width and height of the box as fractions of the
            upright image's size, within 0..1.
    """

    file: Path
    rows: list[Row] = field(default_factory=list)


@dataclass
class Notes:
    """What a user should know of a conversion: how often, and the first few examples."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, what: str, example: str = "", times: int = 1) -> None:
        """Counts something, and keeps the example when it is among the first three."""
        self.counts[what] += times
        known = self.examples.setdefault(what, [])
        if example and len(known) < 3:
            known.append(example)

    def lines(self) -> list[str]:
        """One line each."""
        lines = []
        for what, count in self.counts.items():
            known = self.examples[what]
            more = ", ..." if count > len(known) else ""
            lines.append(f"{what}: {count}" + (f" ({', '.join(known)}{more})" if known else ""))
        return lines


@dataclass
class Placed:
    """A source's annotations on its images.

    Attributes:
        labelled: the images that are there, in order of their paths.
        named: all files that the annotations name, the unreadable too.
        notes: of what was left out or changed.
    """

    labelled: list[Labelled]
    named: set[Path]
    notes: Notes


def place(annotations: Annotations, class_names: Sequence[str], folder: Folder) -> Placed:
    """The images that are there, with their boxes as YOLO has them.

    Sizes come from the images and not from the annotations. A missing or unreadable image is
    left out; boxes are clipped to their image, and left out when nothing remains.

    Args:
        annotations: of one source.
        class_names: by class id; all that the boxes have.
        folder: where the images are.

    Raises:
        ValueError: none of the images is in the folder; a name in the annotations leads out of
            it or may mean several; two names mean one image; or no box remains.
    """
    notes = Notes()
    for reason, count in annotations.left_out.items():
        notes.add(f"{reason}, left out", times=count)
    class_ids = {name: class_id for class_id, name in enumerate(class_names)}
    labelled: dict[Path, Labelled] = {}
    named: dict[Path, PurePosixPath] = {}
    for image in annotations.images:
        file = folder.find(image.names, image.where)
        if file is None:
            notes.add("images missing, left out", image.names[0])
            continue
        name = PurePosixPath(image.names[0].replace("\\", "/"))
        if named.setdefault(file, name).parent != name.parent:
            raise ValueError(f"{image.where}: both {named[file]} and {name} would be {file}")
        said, is_in = name.parent.parts[::-1], file.relative_to(folder.root).parent.parts[::-1]
        if any(key_of(a) != key_of(b) for a, b in zip(said, is_in, strict=False)):
            notes.add("images found in another folder, by their file name", str(name))
        size = read_size(file)
        if size is None:
            notes.add("images that can't be read, left out", file.name)
            continue
        if file in labelled:
            notes.add("images described again, boxes joined", file.name)
        rows = labelled.setdefault(file, Labelled(file)).rows
        turned = is_as_stored(image, size, file, notes)
        for box in image.boxes:
            width, height = size.stored_wh if turned else size.upright_wh
            unit = (width, height, width, height) if annotations.fractions else (1, 1, 1, 1)
            x1, y1, x2, y2 = (value * by for value, by in zip(box.xyxy, unit, strict=True))
            xyxy = size.to_upright((x1, y1, x2, y2)) if turned else (x1, y1, x2, y2)
            row = yolo_row(xyxy, size.upright_wh, class_ids[box.class_name], image, notes)
            if row:
                rows.append(row)
    if not labelled:
        first = annotations.images[0].names[0] if annotations.images else "no image at all"
        raise ValueError(
            f"{folder.root}: holds none of the {len(annotations.images)} images that the "
            f"annotations name ({first}, ...): --images is the folder with them, --val-images with "
            f"those of --val"
        )
    if not any(image.rows for image in labelled.values()):
        left = "; ".join(notes.lines())
        why = f" ({left})" if left else ""
        raise ValueError(f"{annotations.source}: no image has a box in it{why}")
    return Placed([labelled[file] for file in sorted(labelled)], set(named), notes)


def count_strangers(folders: Sequence[Folder], placed: Sequence[Placed]) -> int:
    """How many images of the folders no source names; folders may be one, or overlap."""
    files = {file.absolute() for folder in folders for file in folder.files}
    return len(files - {file.absolute() for part in placed for file in part.named})


def is_as_stored(image: Image, size: Size, file: Path, notes: Notes) -> bool:
    """Whether boxes refer to the pixels as stored, in an image that EXIF turns.

    Tools disagree on that. The size in the annotations tells where EXIF swaps width and height;
    else they are taken to be made on the image as it is shown.
    """
    annotated_wh = image.size_wh
    if size.orientation == 1:
        if annotated_wh not in (None, size.stored_wh):
            real = "x".join(map(str, size.stored_wh))
            notes.add(
                "images of another size than annotated, theirs taken",
                f"{file.name} is {real}, not {annotated_wh[0]}x{annotated_wh[1]}"
                if annotated_wh
                else "",
            )
        return False
    if size.stored_wh != size.upright_wh and annotated_wh == size.stored_wh:
        notes.add("images that EXIF turns, their boxes turned too", file.name)
        return True
    if annotated_wh != size.upright_wh or size.stored_wh == size.upright_wh:
        notes.add(
            "images that EXIF turns, their boxes taken as made on the upright image",
            file.name,
        )
    return False


def yolo_row(
    xyxy: Corners, size_wh: tuple[int, int], class_id: int, image: Image, notes: Notes
) -> Row | None:
    """The row of a box in pixels of the upright image; None where nothing of it remains."""
    width, height = size_wh
    x1, x2 = (min(max(x, 0.0), width) for x in (xyxy[0], xyxy[2]))
    y1, y2 = (min(max(y, 0.0), height) for y in (xyxy[1], xyxy[3]))
    if xyxy[2] <= xyxy[0] or xyxy[3] <= xyxy[1]:
        notes.add("boxes without area, left out", image.where)
        return None
    if x2 <= x1 or y2 <= y1:
        notes.add("boxes outside of their image, left out", image.where)
        return None
    if max(abs(a - b) for a, b in zip((x1, y1, x2, y2), xyxy, strict=True)) > CLIPPED_PX:
        notes.add("boxes clipped to their image", image.where)
    return (
        class_id,
        (x1 + x2) / 2 / width,
        (y1 + y2) / 2 / height,
        (x2 - x1) / width,
        (y2 - y1) / height,
    )
