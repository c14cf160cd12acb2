"""Pre-labels a folder of images for Label Studio: tasks with predictions, to be imported.

    python examples/label_studio.py samples --prefix '/data/local-files/?d=samples/' -o tasks.json

The labelling configuration has <Image name="image" value="$image"/> and
<RectangleLabels name="label" toName="image"> with the model's class names.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

from yolov8_fla_client import Client, DetectClientError, ImageResult

DEFAULT_URL = "http://127.0.0.1:8000"


def task(found: ImageResult, image: str) -> dict[str, Any]:
    """Label Studio's task: coordinates are percent of the image's width and height.

    Args:
        found: in an image that the server could read.
        image: URL under which Label Studio finds it.

    Raises:
        ValueError: the server could not read it.

    Source:
        Label Studio's guide, "Import pre-annotated data into Label Studio".
    """
    width, height, model = found.width, found.height, found.model
    if width is None or height is None or model is None:
        raise ValueError("the server has not read the image")
    results = []
    for index, each in enumerate(found.detections):
        box = each.box
        results.append({
            "id": str(index),
            "type": "rectanglelabels",
            "from_name": "label",
            "to_name": "image",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "score": each.score,
            "value": {
                "x": 100 * box.x1 / width,
                "y": 100 * box.y1 / height,
                "width": 100 * (box.x2 - box.x1) / width,
                "height": 100 * (box.y2 - box.y1) / height,
                "rotation": 0,
                "rectanglelabels": [each.class_name],
            },
        })  # fmt: skip
    prediction = {
        "model_version": f"{model.name} {model.version}",
        # Label Studio can order tasks by it: the least sure first.
        "score": min((each.score for each in found.detections), default=1.0),
        "result": results,
    }
    return {"data": {"image": image}, "predictions": [prediction]}


def write_whole(path: Path, text: str) -> None:
    """Puts a file there, or leaves the old one; never half of one."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def main() -> int:
    """Writes the tasks of a folder; 1 where some images failed, 2 where nothing was written."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="with the folders in it")
    parser.add_argument("--prefix", required=True, help="what Label Studio has before a file name")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--url", default=os.environ.get("FLA_CLIENT_URL") or DEFAULT_URL)
    parser.add_argument("--api-key", default=os.environ.get("FLA_CLIENT_API_KEY") or None)
    parser.add_argument("--conf", type=float, default=0.25)
    chosen = parser.parse_args()
    tasks, failed = [], 0
    try:
        with Client(chosen.url, api_key=chosen.api_key) as client:
            client.model()  # a wrong address or key ends it before the first image is read
            for found in client.detect_folder(chosen.folder, ordered=True, conf=chosen.conf):
                if found.error is None:
                    tasks.append(task(found, chosen.prefix + quote(found.filename or "")))
                else:
                    failed += 1
                    print(f"{found.filename}: {found.error.detail}", file=sys.stderr)
        write_whole(chosen.output, json.dumps(tasks, indent=1, ensure_ascii=False))
    except (DetectClientError, OSError, ValueError) as error:
        print(f"error: {error}; nothing was written", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return 130
    print(f"{len(tasks)} tasks, {failed} images failed: {chosen.output}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
