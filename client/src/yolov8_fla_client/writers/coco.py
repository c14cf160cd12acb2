"""COCO: one JSON document, as pycocotools and CVAT read it.

The document is made of two temporary files, so the memory does not grow with the images.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import IO, Any

from yolov8_fla_client.results import Detection, ImageResult, ModelDescription
from yolov8_fla_client.writers.files import OutputRefused, refuse_what_is_there, synced

PARTIAL = ".partial"
FIRST_CATEGORY_ID = 1  # as in COCO itself; 0 is "no category" to some tools


def annotation_of(detection: Detection, annotation_id: int, image_id: int) -> dict[str, Any]:
    """A detection as COCO has it: x, y, width, height in upright original pixels."""
    box = detection.box
    width, height = round(box.x2 - box.x1, 2), round(box.y2 - box.y1, 2)
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": detection.class_id + FIRST_CATEGORY_ID,
        "bbox": [box.x1, box.y1, width, height],
        "area": round(width * height, 2),
        "iscrowd": 0,
        "segmentation": [],
        "score": detection.score,
    }


class Coco:
    """Writes a document of all images that were read; ids count from 1, in the images' order.

    Args:
        path: the file.
        model: its classes are the categories.
        force: writes over what is there.

    Raises:
        OutputRefused: something is there, and not `force`.
        OSError: files can't be made in its folder.
    """

    def __init__(self, path: Path, model: ModelDescription, *, force: bool = False) -> None:
        self._partial = path.with_name(path.name + PARTIAL)
        refuse_what_is_there(path, force=force)
        if self._partial.exists() and not force:
            raise OutputRefused(
                f"{self._partial} is of a run that ended early; --force writes over it"
            )
        self._path = path
        self._model = model
        # Beside the document: a folder that can't be written is told now, not at the end, and the
        # system's folder for temporary files may be in memory.
        self._images, self._annotations = (
            tempfile.TemporaryFile("w+", encoding="utf-8", dir=path.parent)  # noqa: SIM115
            for _ in range(2)
        )
        self._image_id = self._annotation_id = 0

    def write(self, result: ImageResult) -> None:
        """Adds an image; one that could not be read has no size, and is left out."""
        if result.error is not None:
            return
        self._image_id += 1
        _add(
            self._images,
            self._image_id,
            {
                "id": self._image_id,
                "file_name": result.filename,
                "width": result.width,
                "height": result.height,
            },
        )
        for each in result.detections:
            self._annotation_id += 1
            row = annotation_of(each, self._annotation_id, self._image_id)
            _add(self._annotations, self._annotation_id, row)

    def finish(self) -> None:
        """The document is there."""
        self._document()
        self._partial.replace(self._path)

    def stop(self) -> None:
        """A document of what was done is there, under a name that says so."""
        if not self._images.closed:
            self._document()

    @property
    def rest(self) -> str | None:
        """Where what was done is, for people."""
        return f"{self._partial}, a whole document of the images so far"

    def _document(self) -> None:
        about = {
            "description": f"detections of {self._model.name}",
            "version": self._model.version,
        }
        categories = [
            {"id": i, "name": name, "supercategory": ""}
            for i, name in enumerate(self._model.class_names, FIRST_CATEGORY_ID)
        ]
        with self._images as images, self._annotations as annotations:
            temporary = self._partial.with_name(self._partial.name + ".new")
            try:
                with temporary.open("w", encoding="utf-8") as out:
                    out.write(f'{{"info": {json.dumps(about)}, "licenses": [],\n')
                    out.write(f'"categories": {json.dumps(categories)},\n"images": [\n')
                    images.seek(0)
                    shutil.copyfileobj(images, out)
                    out.write('\n],\n"annotations": [\n')
                    annotations.seek(0)
                    shutil.copyfileobj(annotations, out)
                    out.write("\n]}\n")
                    out.flush()
                    synced(out.fileno())
                temporary.replace(self._partial)
            finally:
                temporary.unlink(missing_ok=True)


def _add(file: IO[str], number: int, row: dict[str, Any]) -> None:
    file.write((",\n" if number > 1 else "") + json.dumps(row))
