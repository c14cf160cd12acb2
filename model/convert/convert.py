"""The conversion as a whole."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from model.convert.annotations import Annotations, in_order
from model.convert.coco import read_coco
from model.convert.dataset import check_output, copies_in, split, write
from model.convert.images import Folder
from model.convert.placement import Labelled, Notes, Placed, count_strangers, place
from model.convert.table import read_csv
from model.convert.voc import read_voc

FORMS = ("coco", "voc", "csv")
SUFFIXES = {".json": "coco", ".xml": "voc", ".csv": "csv", ".tsv": "csv", ".txt": "csv"}


def convert(
    source: Path,
    images: Path,
    output: Path,
    *,
    form: str | None = None,
    val: Path | None = None,
    val_images: Path | None = None,
    val_fraction: float | None = None,
    seed: int = 0,
    link: bool = False,
    skip_difficult: bool = False,
    force: bool = False,
) -> str:
    """Converts a data set into YOLO form.

    Without `val` the images are split by chance. With it the split is kept: `source` is for
    training, `val` for validation. An image of both is left out of training, as `val` has to
    stay the one that others measured on.

    Args:
        source: the annotations: a COCO JSON, a CSV, a VOC XML or a folder of those.
        images: the folder with the images, however deep.
        output: made: data.yaml, images/ and labels/ with train/ and val/ each.
        form: "coco", "voc" or "csv"; None takes it from the source.
        val: the annotations for validation, in the same form.
        val_images: the folder with their images; None is `images`.
        val_fraction: share of the images for validation, between 0 and 1; None is a fifth.
        seed: of the split.
        link: link to the images instead of copying them.
        skip_difficult: leave out VOC's difficult objects.
        force: replace a data set in `output`.

    Returns:
        A summary for the user.

    Raises:
        FileNotFoundError: the annotations or the folder of images do not exist.
        ValueError: something in them can't be converted; the message names file and record.
            Nothing was written then.
    """
    if val is None and val_images is not None:
        raise ValueError("--val-images has the images of --val, which is not given")
    if val is not None and val_fraction is not None:
        raise ValueError("--val-fraction draws a split and --val keeps one: give one of them")
    sources = [source] if val is None else [source, val]
    for path in sources:
        if not path.exists():
            raise FileNotFoundError(f"{path}: there is no such file or folder")
    check_output(output, [*sources, images, val_images or images], force)
    form = form or form_of(source)
    annotations = [read(path, form, skip_difficult) for path in sources]
    class_names = common_classes(annotations)
    if not class_names:
        raise ValueError(f"{source}: there is no class in it")
    folders = [Folder(images)]
    if val is not None:
        folders.append(Folder(val_images) if val_images else folders[0])
    placed = [
        place(part, class_names, folder) for part, folder in zip(annotations, folders, strict=True)
    ]
    if val is None:
        fraction = 0.2 if val_fraction is None else val_fraction
        train, validation = split(placed[0].labelled, fraction, seed)
        parts, lines = {"train": train, "val": validation}, placed[0].notes.lines()
    else:
        parts, lines = keep(placed, sources, class_names)
    if strangers := count_strangers(folders, placed):
        lines.append(f"images of the folder that the annotations don't name, left out: {strangers}")
    roots = {"train": folders[0].root, "val": folders[-1].root}
    write(parts, class_names, roots, output, link=link)
    return "\n".join([*table(annotations, class_names, parts), *lines, str(output / "data.yaml")])


def common_classes(annotations: Sequence[Annotations]) -> list[str]:
    """The class names of all sources by class id: one name is one class, whatever its ids are.

    Some tools number the categories of each file anew, so COCO's ids say only the order: the
    first file's, then what only the second one has.
    """
    names = [name for source in annotations for name in source.class_names]
    return list(dict.fromkeys(names)) if annotations[0].form == "COCO" else in_order(names)


def keep(
    placed: Sequence[Placed], sources: Sequence[Path], class_names: Sequence[str]
) -> tuple[dict[str, list[Labelled]], list[str]]:
    """The parts of a given split, and lines for the user.

    Raises:
        ValueError: without the images that are in `val` too, no box is left to train on.
    """
    parts = {"train": placed[0].labelled, "val": placed[1].labelled}
    lines = [
        f"{part}: {line}"
        for part, one in zip(parts, placed, strict=True)
        for line in one.notes.lines()
    ]
    notes = Notes()
    leaks = copies_in(parts["train"], parts["val"])
    for image in leaks:
        notes.add("images of train that are in val too, left out of train", image.file.name)
    files = {image.file for image in leaks}
    parts["train"] = [image for image in parts["train"] if image.file not in files]
    seen, measured = ({row[0] for image in part for row in image.rows} for part in parts.values())
    if not seen:
        raise ValueError(
            f"{sources[0]}: no box is left to train on without the {len(leaks)} images that are "
            f"in {sources[1]} too"
        )
    for class_id in sorted(measured - seen):
        notes.add("classes of val without a box in train", class_names[class_id])
    return parts, lines + notes.lines()


def form_of(source: Path) -> str:
    """The form of annotations by their ending, or by what is in the folder.

    Raises:
        ValueError: it doesn't tell.
    """
    form = SUFFIXES.get(source.suffix.lower()) if source.is_file() else None
    if source.is_dir() and next(source.rglob("*.xml"), None):
        form = "voc"
    if form is None:
        raise ValueError(
            f"{source}: its form is not clear: a COCO .json, a .csv, or a folder with VOC .xml is "
            f"expected; --from says which"
        )
    return form


def read(source: Path, form: str, skip_difficult: bool) -> Annotations:
    """Reads annotations of a form."""
    if form == "voc":
        return read_voc(source, skip_difficult=skip_difficult)
    if source.is_dir():
        raise ValueError(f"{source}: is a folder; {form} annotations are one file")
    return read_coco(source) if form == "coco" else read_csv(source)


def table(
    annotations: Sequence[Annotations],
    class_names: Sequence[str],
    parts: Mapping[str, Sequence[Labelled]],
) -> list[str]:
    """Images and boxes of each class in each part, below the form of the sources."""
    counts = {
        part: Counter(row[0] for image in images for row in image.rows)
        for part, images in parts.items()
    }
    width = max(len(name) for name in ["background", *class_names])
    forms = dict.fromkeys(
        source.form + (", boxes as fractions" if source.fractions else "") for source in annotations
    )
    lines = [" and ".join(forms), f"{'':<{width}}{'train':>9}{'val':>9}"]
    for name, number in (
        ("images", [len(images) for images in parts.values()]),
        ("background", [sum(not p.rows for p in images) for images in parts.values()]),
        *(
            (name, [count[class_id] for count in counts.values()])
            for class_id, name in enumerate(class_names)
        ),
    ):
        lines.append(f"{name:<{width}}" + "".join(f"{n:>9}" for n in number))
    return lines
