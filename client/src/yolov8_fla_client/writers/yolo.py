"""YOLO labels: a text file an image, a line a detection, in the tree of the images."""

import json
from pathlib import Path, PurePosixPath

from yolov8_fla_client.results import ImageResult, ModelDescription
from yolov8_fla_client.writers.files import Claims, refuse_full_folder, write_whole

DATA_YAML = """\
# The labels are in labels/; put the images into images/ beside it, in the same folders.
path: {path}
train: images
val: images
names:
{names}"""


def yaml_text(text: str) -> str:
    """Text as YAML has it. JSON's is the same but for pairs of surrogates, which YAML has not."""
    escaped = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08X}" for c in escaped)


def label_lines(result: ImageResult, *, with_scores: bool) -> str:
    """The lines of one image: class id, centre x, centre y, width, height, in parts of its size.

    Args:
        result: of an image that was read.
        with_scores: the score is a sixth column. (Training reads five.)
    """
    assert result.width is not None
    assert result.height is not None
    lines = []
    for each in result.detections:
        x1, x2 = (_part(x, result.width) for x in (each.box.x1, each.box.x2))
        y1, y2 = (_part(y, result.height) for y in (each.box.y1, each.box.y2))
        numbers = [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]
        if with_scores:
            numbers.append(each.score)
        lines.append(" ".join([str(each.class_id), *(f"{number:.6f}" for number in numbers)]))
    return "".join(line + "\n" for line in lines)


class YoloLabels:
    """Writes `labels/**.txt`, and `classes.txt` and `data.yaml`, into a folder.

    Args:
        folder: made where it is missing.
        model: for the classes.
        with_scores: see `label_lines`.
        force: writes over what is there.

    Raises:
        OutputRefused: the folder holds something, and not `force`.
    """

    def __init__(
        self, folder: Path, model: ModelDescription, *, with_scores: bool, force: bool = False
    ) -> None:
        refuse_full_folder(folder, force=force)
        self._folder = folder
        self._with_scores = with_scores
        self._claims = Claims()
        names = model.class_names
        write_whole(folder / "classes.txt", "".join(f"{name}\n" for name in names).encode())
        listed = "".join(f"  {i}: {yaml_text(name)}\n" for i, name in enumerate(names))
        path = yaml_text(str(folder.resolve()))
        write_whole(folder / "data.yaml", DATA_YAML.format(path=path, names=listed).encode())

    def write(self, result: ImageResult) -> None:
        """Writes an image's file, an empty one where nothing was found.

        Raises:
            NameTaken: it is that of another image.
        """
        if result.error is not None:
            return
        name = result.filename or ""
        output = str(PurePosixPath("labels", name).with_suffix(".txt"))
        self._claims.take(output, name)
        text = label_lines(result, with_scores=self._with_scores)
        write_whole(self._folder / output, text.encode())

    def finish(self) -> None:
        """All is written as it came."""

    def stop(self) -> None:
        """What was written stays."""

    @property
    def rest(self) -> str | None:
        """Where what was done is, for people."""
        return str(self._folder)


def _part(place: float, size: int) -> float:
    return min(1.0, max(0.0, place / size))
