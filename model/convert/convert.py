"""The conversion as a whole."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from model.convert.annotations import Annotations
from model.convert.coco import read_coco
from model.convert.dataset import check_output, split, write
from model.convert.pictures import Folder
from model.convert.placement import Labelled, place
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
    val_fraction: float = 0.2,
    seed: int = 0,
    link: bool = False,
    skip_difficult: bool = False,
    force: bool = False,
) -> str:
    """Converts a data set into YOLO form.

    Args:
        source: the annotations: a COCO JSON, a CSV, a VOC XML or a folder of those.
        images: the folder with the pictures, however deep.
        output: made: data.yaml, images/ and labels/ with train/ and val/ each.
        form: "coco", "voc" or "csv"; None takes it from the source.
        val_fraction: share of the pictures for validation, between 0 and 1.
        seed: of the split.
        link: link to the pictures instead of copying them.
        skip_difficult: leave out VOC's difficult objects.
        force: replace a data set in `output`.

    Returns:
        A summary for the user.

    Raises:
        FileNotFoundError: the annotations or the folder of pictures do not exist.
        ValueError: something in them can't be converted; the message names file and record.
            Nothing was written then.
    """
    if not source.exists():
        raise FileNotFoundError(f"{source}: there is no such file or folder")
    check_output(output, [source, images], force)
    annotations = read(source, form or form_of(source), skip_difficult)
    if not annotations.class_names:
        raise ValueError(f"{source}: there is no class in it")
    folder = Folder(images)
    labelled, notes = place(annotations, folder)
    train, val = split(labelled, val_fraction, seed)
    parts = {"train": train, "val": val}
    write(parts, annotations.class_names, images, output, link=link)
    return "\n".join([*table(annotations, parts), *notes.lines(), str(output / "data.yaml")])


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


def table(annotations: Annotations, parts: Mapping[str, Sequence[Labelled]]) -> list[str]:
    """Pictures and boxes of each class in each part."""
    counts = {
        part: Counter(row[0] for picture in pictures for row in picture.rows)
        for part, pictures in parts.items()
    }
    width = max(len(name) for name in ["background", *annotations.class_names])
    unit = ", boxes as fractions" if annotations.fractions else ""
    lines = [f"{annotations.form}{unit}", f"{'':<{width}}{'train':>9}{'val':>9}"]
    for name, number in (
        ("pictures", [len(pictures) for pictures in parts.values()]),
        ("background", [sum(not p.rows for p in pictures) for pictures in parts.values()]),
        *(
            (name, [count[class_id] for count in counts.values()])
            for class_id, name in enumerate(annotations.class_names)
        ),
    ):
        lines.append(f"{name:<{width}}" + "".join(f"{n:>9}" for n in number))
    return lines
