"""COCO accuracy of a running server, measured through its HTTP interface, or of an artifact.

    python -m benchmarks.accuracy --url http://127.0.0.1:8000 --data DATA.yaml --split val
    python -m benchmarks.accuracy --artifact MODEL.onnx --reduced --data DATA.yaml --split val

Sends every image of a YOLO-form data set to `POST /detect` and scores the answers with pycocotools:
mAP50-95, mAP50 and the AP of each class, boxes in pixels of the upright original image. With
`--artifact` the same pipeline runs in this process; `--reduced` then decodes large JPEGs at reduced
scale, as the server does by default.

Two things differ from ultralytics' `val` at the same thresholds, both small: `val` lets one box
carry several classes (multi_label), the server answers the best class of a box only; and `val`
integrates the precision-recall curve in its own way, pycocotools at 101 recall points.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from export.errors import DatasetInvalid
from export.verification.coco_figures import (
    MATCH_IOU,
    Accuracy,
    Recall,
    coco_accuracy,
    recall_at,
)
from export.verification.yolo_dataset import Boxes, LabelledImage, read_dataset
from server.errors import ServerError
from server.inference.artifact import load_artifact
from server.inference.detector import finish, prepare_encoded
from server.inference.session import Session
from server.vision.nms import DetectParameters

MAX_TRIES = 5


class AccuracyError(Exception):
    """The measurement can't be made; the message says what to mend."""


def detect(
    client: httpx.Client, images: Sequence[LabelledImage], query: Mapping[str, float]
) -> dict[str, Any]:
    """Posts one batch to `/detect`, again where the server says it is busy.

    Returns:
        The answer; its results are one an image, in their order.

    Raises:
        AccuracyError: The server can't be reached, refuses, or left an image unanswered.
    """
    files = [("images", (image.path.name, image.path.read_bytes())) for image in images]
    for _ in range(MAX_TRIES):
        try:
            response = client.post("/detect", files=files, params=dict(query))
        except httpx.HTTPError as error:
            raise AccuracyError(f"{client.base_url} does not answer: {error!r}") from error
        if response.status_code != httpx.codes.SERVICE_UNAVAILABLE:
            break
        time.sleep(float(response.headers.get("Retry-After", 1)))
    if response.status_code != httpx.codes.OK:
        raise AccuracyError(f"{response.url} answered {response.status_code}: {response.text}")
    try:
        answer: dict[str, Any] = response.json()
        count = len(answer["results"])
    except (ValueError, KeyError, TypeError) as error:
        raise AccuracyError(f"{response.url} gave no answer of a detector: {error!r}") from error
    if count != len(images):
        raise AccuracyError(f"sent {len(images)} images, got {count} results")
    return answer


def read_result(
    result: Mapping[str, Any], image: LabelledImage, names: Mapping[int, str]
) -> tuple[Boxes, int]:
    """Turns one result of `/detect` into the data set's terms.

    Classes are matched by name, so the model may number them otherwise.

    Returns:
        The detections, and how many more were of classes that the data set does not name.

    Raises:
        AccuracyError: The server could not read the image, or saw it at another size.
    """
    if result["error"]:
        raise AccuracyError(f"the server could not read {image.path}: {result['error']}")
    if (result["width"], result["height"]) != (image.width, image.height):
        raise AccuracyError(
            f"{image.path} is {image.width}x{image.height}, "
            f"the server saw {result['width']}x{result['height']}"
        )
    ids = {name: class_id for class_id, name in names.items()}
    detections = result["detections"]
    known = [d for d in detections if d["class_name"] in ids]
    corners = [[d["box"][key] for key in ("x1", "y1", "x2", "y2")] for d in known]
    boxes = Boxes(
        np.array(corners, np.float64).reshape(-1, 4),
        np.array([ids[d["class_name"]] for d in known], np.int64),
        np.array([d["score"] for d in known], np.float64),
    )
    return boxes, len(detections) - len(known)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures a server and prints the figures; says what is wrong where it can't."""
    options = parse(arguments)
    try:
        names, images = read_dataset(options.data, options.split)
        detect_them = detect_here if options.artifact else detect_all
        detections, versions = detect_them(options, images, names)
    except (AccuracyError, DatasetInvalid, ServerError) as error:
        sys.exit(f"accuracy: {error}")
    accuracy = coco_accuracy(images, detections, names, options.max_det)
    recall = None
    if options.recall_at is not None:
        recall = recall_at(options.recall_at, images, detections, names)
    print(table(accuracy, recall, images))
    if options.json:
        figures = {"model": versions, "images": len(images)} | {
            key: str(value) if isinstance(value, Path) else value
            for key, value in vars(options).items()
            if key not in ("json", "api_key")
        }
        figures |= asdict(accuracy)
        if recall is not None:
            figures["recall"] = asdict(recall) | {"share": recall.share}
        options.json.write_text(json.dumps(without_nan(figures), indent=2) + "\n")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy",
        description="COCO accuracy of a running server on a YOLO-form data set.",
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server's address")
    parser.add_argument("--artifact", type=Path, help="measure this file instead of a server")
    parser.add_argument(
        "--reduced", action="store_true", help="with --artifact: large JPEGs at reduced scale"
    )
    parser.add_argument("--data", type=Path, required=True, help="the data set's data.yaml")
    parser.add_argument("--split", default="val", help="key of the split in data.yaml")
    parser.add_argument("--conf", type=float, default=0.001, help="confidence threshold sent")
    parser.add_argument("--iou", type=float, default=0.7, help="NMS IoU threshold sent")
    parser.add_argument("--max-det", type=int, default=300, help="detections an image, sent")
    parser.add_argument("--batch", type=int, default=8, help="images a request")
    parser.add_argument("--api-key", help="sent as `Authorization: Bearer`")
    parser.add_argument("--timeout-s", type=float, default=60.0, help="limit of one request")
    parser.add_argument(
        "--recall-at",
        type=float,
        metavar="CONF",
        help="also print the share of labelled objects found above CONF at IoU 0.5",
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures here too")
    options = parser.parse_args(arguments)
    if options.reduced and options.artifact is None:
        parser.error("--reduced goes with --artifact; a server has a setting for it")
    if options.batch < 1:
        parser.error("--batch must be at least 1")
    if options.recall_at is not None and options.recall_at < options.conf:
        parser.error("--recall-at must not lie below --conf, the server leaves such boxes out")
    return options


def detect_all(
    options: argparse.Namespace, images: Sequence[LabelledImage], names: Mapping[int, str]
) -> tuple[list[Boxes], dict[str, str]]:
    """Sends all images, `--batch` a request.

    Returns:
        The detections of each image, in order, and the model as the server names it.

    Raises:
        AccuracyError: As `detect` and `read_result`, or no detection is of a class of the data set.
    """
    query = {"conf": options.conf, "iou": options.iou, "max_det": options.max_det}
    headers = {"Authorization": f"Bearer {options.api_key}"} if options.api_key else {}
    found: list[Boxes] = []
    foreign = truncated = 0
    with httpx.Client(base_url=options.url, headers=headers, timeout=options.timeout_s) as client:
        for start in range(0, len(images), options.batch):
            batch = images[start : start + options.batch]
            answer = detect(client, batch, query)
            for result, image in zip(answer["results"], batch, strict=True):
                boxes, others = read_result(result, image, names)
                found.append(boxes)
                foreign += others
                truncated += bool(result.get("truncated"))
    if foreign and not any(len(boxes.scores) for boxes in found):
        raise AccuracyError(
            f"none of the {foreign} detections is of a class that {options.data} names"
        )
    if foreign:
        print(f"left out {foreign} detections of classes that {options.data} does not name")
    if truncated:
        print(f"{truncated} images had more candidates than the model gives out (truncated)")
    return found, answer["model"]


def detect_here(
    options: argparse.Namespace, images: Sequence[LabelledImage], names: Mapping[int, str]
) -> tuple[list[Boxes], dict[str, str]]:
    """Runs the artifact on all images in this process, on the CPU; returns as `detect_all`.

    Raises:
        AccuracyError: no class of the model is one of the data set's.
        ServerError: the artifact or an image can't be read.
    """
    artifact = load_artifact(options.artifact)
    metadata = artifact.metadata
    session = Session.open(artifact, device="cpu")
    parameters = DetectParameters(options.conf, options.iou, options.max_det)
    ids = {name: class_id for class_id, name in names.items()}
    if not ids.keys() & set(metadata.class_names):
        raise AccuracyError(f"{options.data} names none of {options.artifact}'s classes")
    theirs = np.array([ids.get(name, -1) for name in metadata.class_names])
    found = []
    for image in images:
        prepared, _ = prepare_encoded(
            image.path.read_bytes(), metadata, max_pixels=2**30, dct_scaling=options.reduced
        )
        candidates = session.run(prepared.canvas[None])[0]
        detections = finish(candidates, prepared, metadata, parameters).detections
        class_ids = theirs[detections.class_ids]
        known = class_ids >= 0
        boxes = detections.boxes[known].astype(np.float64)
        scores = detections.scores[known].astype(np.float64)
        found.append(Boxes(boxes, class_ids[known], scores))
    return found, {"name": metadata.name, "version": artifact.version}


def table(accuracy: Accuracy, recall: Recall | None, images: Sequence[LabelledImage]) -> str:
    """The figures as a person reads them."""
    labelled = sum(len(image.truth.class_ids) for image in images)
    lines = [f"{len(images)} images, {labelled} objects"]
    lines.append(f"{'class':<20}{'AP50-95':>9}{'AP50':>9}" + (f"{'found':>9}" if recall else ""))
    rows = {"all": (accuracy.map50_95, accuracy.map50, recall.share if recall else 0.0)} | {
        name: (each["ap50_95"], each["ap50"], recall.per_class[name] if recall else 0.0)
        for name, each in accuracy.per_class.items()
    }
    for name, figures in rows.items():
        shown = figures if recall else figures[:2]
        lines.append(f"{name:<20}" + "".join(f"{figure:9.4f}" for figure in shown))
    if recall:
        lines.append(
            f"found: {recall.found} of {recall.labelled} with a score above {recall.conf}, "
            f"IoU >= {MATCH_IOU}"
        )
    return "\n".join(lines)


def without_nan(value: Any) -> Any:
    """JSON knows no NaN: null stands for a figure that does not exist."""
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


if __name__ == "__main__":
    main()
