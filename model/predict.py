"""Detections of a checkpoint in images, by ultralytics' own prediction."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from ultralytics.models.yolo.detect import DetectionPredictor

from model.checkpoint import read_checkpoint, rebuild
from model.convert.dataset import unique_names
from model.convert.images import SUFFIXES
from model.val import checked_imgsz


def predict(
    checkpoint: Path,
    images: Sequence[Path],
    output: Path,
    *,
    imgsz: int | None = None,
    conf: float = 0.25,
    iou: float = 0.7,
    device: str | None = None,
    save_txt: bool = False,
    save_json: bool = False,
    force: bool = False,
) -> list[str]:
    """Writes each image with its detections drawn in, as NAME.jpg.

    Args:
        checkpoint: a `.pt`; nothing in it is run.
        images: files, and folders of images.
        output: folder for what is written, made if missing.
        imgsz: longer side in pixels, a multiple of the stride; None: as it was trained, or 640.
        conf: least score, 0..1.
        iou: overlap above which the weaker of two boxes of a class goes, 0..1.
        device: as ultralytics takes it: cpu, 0, ...; None chooses.
        save_txt: also NAME.txt: class id, then centre x, centre y, width and height as fractions
            of the upright image, then the score.
        save_json: also detections.json: a list of images, boxes in pixels of the upright
            image.
        force: write into a folder that is not empty.

    Returns:
        Lines for the user: what was found in each image, then in all.

    Raises:
        FileNotFoundError: when an image does not exist.
        ValueError: when the checkpoint can't be read or has layers that only `export` knows, a
            number is out of range, there is no image, the output holds something or is where the
            images are, or images can't be read; the others are written then.
    """
    saved = read_checkpoint(checkpoint)
    model = rebuild(saved)
    for name, value in (("conf", conf), ("iou", iou)):
        if not 0 <= value <= 1:
            raise ValueError(f"--{name} {value} is not between 0 and 1")
    if imgsz is None:
        imgsz = saved.imgsz or 640
    imgsz = checked_imgsz(imgsz, int(model.stride.max()))
    files = list_images(images)
    if output.is_dir() and any(output.iterdir()) and not force:
        raise ValueError(f"{output} is not empty: --force writes into it")
    names = unique_names(files, Path(files[0].anchor))
    written = {(output / f"{name}.jpg").resolve() for name in names.values()}
    if over := [file for file in files if file.resolve() in written]:
        raise ValueError(f"{over[0]} would be written over: choose another --output")
    output.mkdir(parents=True, exist_ok=True)

    overrides = {
        "imgsz": imgsz,
        "conf": conf,
        "iou": iou,
        "device": device,
        "rect": True,
        "save": False,
        "verbose": False,
        # Where ultralytics makes a folder of its own; without it, below the working folder.
        "project": str(output.resolve()),
        "name": ".",
        "exist_ok": True,
    }
    predictor = DetectionPredictor(overrides=overrides)
    lines, records, unread = [], [], []
    total: Counter[str] = Counter()
    for file in files:
        image = read_image(file)
        if image is None:
            unread.append(str(file))
            continue
        result = predictor(image, model=model)[0]
        write_image(output / f"{names[file]}.jpg", result.plot())
        record = as_record(file, result)
        counts = Counter(found["class_name"] for found in record["detections"])
        total += counts
        lines.append(f"{file}: {describe(counts)}")
        records.append(record)
        if save_txt:
            rows = yolo_rows(result)
            (output / f"{names[file]}.txt").write_text(rows)
    if save_json:
        (output / "detections.json").write_text(json.dumps(records, indent=1, ensure_ascii=False))
    if unread:
        raise ValueError(f"{len(unread)} of {len(files)} images can't be read: {', '.join(unread)}")
    return [*lines, f"{len(files)} images: {describe(total)}", str(output)]


def list_images(sources: Sequence[Path]) -> list[Path]:
    """The images among files and folders, each once, absolute.

    Raises:
        FileNotFoundError: one does not exist.
        ValueError: there is none.
    """
    found: list[Path] = []
    for source in sources:
        if source.is_dir():
            found += sorted(p for p in source.rglob("*") if p.suffix.lower() in SUFFIXES)
        elif source.is_file():
            found.append(source)
        else:
            raise FileNotFoundError(f"{source}: there is no such file or folder")
    if not found:
        raise ValueError(f"no images in {', '.join(map(str, sources))}")
    return list(dict.fromkeys(path.absolute() for path in found))


def read_image(file: Path) -> Any:
    """(H, W, 3) uint8 BGR, upright; None when it can't be read."""
    try:
        return cv2.imdecode(np.fromfile(file, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:  # it asserts that there are bytes, and not too many pixels
        return None


def write_image(path: Path, image: Any) -> None:
    """Writes (H, W, 3) BGR as a JPEG, whatever letters are in the path."""
    path.write_bytes(cv2.imencode(".jpg", image)[1].tobytes())


def as_record(file: Path, result: Any) -> dict[str, Any]:
    """One image of detections.json: the form of the server's answers."""
    height, width = result.orig_shape
    boxes = result.boxes
    found = zip(boxes.xyxy.tolist(), boxes.conf.tolist(), boxes.cls.tolist(), strict=True)
    return {
        "filename": file.name,
        "width": width,
        "height": height,
        "detections": [
            {
                "class_id": int(class_id),
                "class_name": result.names[int(class_id)],
                "score": round(score, 5),
                "box": dict(
                    zip(("x1", "y1", "x2", "y2"), (round(v, 2) for v in xyxy), strict=True)
                ),
            }
            for xyxy, score, class_id in found
        ],
    }


def yolo_rows(result: Any) -> str:
    """One line a detection: class id, box as fractions, score."""
    boxes = result.boxes
    found = zip(boxes.cls.tolist(), boxes.xywhn.tolist(), boxes.conf.tolist(), strict=True)
    return "".join(
        f"{int(class_id)} {' '.join(f'{v:.6f}' for v in xywh)} {score:.5f}\n"
        for class_id, xywh, score in found
    )


def describe(counts: Counter[str]) -> str:
    """Such as "12 RBC, 1 WBC"."""
    return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing"
