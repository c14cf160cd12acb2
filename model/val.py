"""How accurate a checkpoint is, by ultralytics' own validation."""

import tempfile
from pathlib import Path
from typing import Any

import yaml
from ultralytics.models.yolo.detect import DetectionValidator

from model.checkpoint import read_checkpoint, rebuild
from model.description import class_names, described


def validate(
    checkpoint: Path,
    data: Path,
    *,
    imgsz: int | None = None,
    split: str = "val",
    batch: int = 16,
    device: str | None = None,
) -> str:
    """Measures a checkpoint on a YOLO-form data set, with minimal padding (`rect`).

    Args:
        checkpoint: a `.pt`; nothing in it is run.
        data: the data set's YAML; its classes are those of the checkpoint.
        imgsz: longer side in pixels, a multiple of the stride; None: as it was trained, or 640.
        split: a key of the YAML: train, val or test.
        batch: images that run at once.
        device: as ultralytics takes it: cpu, 0, ...; None chooses.

    Returns:
        A table: images, boxes, precision, recall, mAP50 and mAP50-95, of all and of each class.

    Raises:
        FileNotFoundError: when the data set does not exist.
        ValueError: when the checkpoint can't be read or has layers that only `export` knows, the
            size is not a multiple of the stride, the batch is empty, or the classes differ.
    """
    saved = read_checkpoint(checkpoint)
    model = rebuild(saved)
    if imgsz is None:
        imgsz = saved.imgsz or 640
    imgsz = checked_imgsz(imgsz, int(model.stride.max()))
    if batch < 1:
        raise ValueError(f"--batch {batch} is below 1")
    table = described(data, [split])
    here, there = class_names(table, data), tuple(model.names.values())
    if here != there:
        raise ValueError(
            f"the classes differ: {data.name} has {', '.join(here)}; "
            f"{checkpoint.name} has {', '.join(there)}"
        )
    with tempfile.TemporaryDirectory(prefix="yolov8-fla-val-") as scratch:
        description = Path(scratch, "data.yaml")
        description.write_text(yaml.safe_dump(table, allow_unicode=True))
        validator = DetectionValidator(
            args={
                "data": str(description),
                "imgsz": imgsz,
                "split": split,
                "batch": batch,
                "device": device,
                "rect": True,
                "plots": False,
                "verbose": False,
                # ultralytics makes a folder for its results even when there are none.
                "project": scratch,
                "name": "run",
            }
        )
        validator(model=model)
    return f"{checkpoint.name} on {data} ({split}), {imgsz} px\n{accuracy(validator)}"


def checked_imgsz(imgsz: int, stride: int) -> int:
    """The size; raises ValueError unless it is a multiple of the stride."""
    if imgsz < stride or imgsz % stride:
        raise ValueError(f"--imgsz {imgsz} is not a multiple of the stride, {stride}")
    return imgsz


def accuracy(validator: Any) -> str:
    """The table of a finished validation; a class without boxes has no figures."""
    metrics = validator.metrics
    width = max(len(name) for name in ["class", *validator.names.values()])
    lines = [
        f"{'class':<{width}}{'images':>10}{'boxes':>8}{'precision':>11}{'recall':>9}{'mAP50':>9}"
        f"{'mAP50-95':>10}"
    ]
    rows = [("all", validator.seen, int(metrics.nt_per_class.sum()), metrics.mean_results())]
    found = list(metrics.ap_class_index)
    rows += [
        (
            name,
            int(metrics.nt_per_image[class_id]),
            int(metrics.nt_per_class[class_id]),
            metrics.class_result(found.index(class_id)) if class_id in found else [],
        )
        for class_id, name in validator.names.items()
    ]
    for name, images, boxes, figures in rows:
        texts = [f"{float(figure):.4f}" for figure in figures] or ["-"] * 4
        spaces = zip(texts, (11, 9, 9, 10), strict=True)
        lines.append(
            f"{name:<{width}}{images:>10}{boxes:>8}" + "".join(f"{s:>{n}}" for s, n in spaces)
        )
    return "\n".join(lines)
