"""Pre-labels a folder of pictures for Label Studio: tasks with predictions, to be imported.

    python examples/label_studio.py samples --prefix '/data/local-files/?d=samples/' > tasks.json

The labelling configuration has <Image name="image" value="$image"/> and
<RectangleLabels name="label" toName="image"> with the model's class names.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

FORMATS = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
TRIES = 10


def detected(client: httpx.Client, path: Path, conf: float) -> dict[str, Any]:
    """The server's answer for one picture; waits where it says when to come again."""
    for _ in range(TRIES):
        answer = client.post("/detect", params={"conf": conf}, content=path.read_bytes())
        if answer.status_code != 503:
            break
        time.sleep(float(answer.headers.get("Retry-After", "1")))
    answer.raise_for_status()
    body: dict[str, Any] = answer.json()
    return body


def task(answer: dict[str, Any], image: str) -> dict[str, Any]:
    """Label Studio's task: coordinates are percent of the picture's width and height.

    Args:
        answer: of `POST /detect`, for one picture.
        image: URL under which Label Studio finds it.

    Source:
        Label Studio's guide, "Import pre-annotated data into Label Studio".
    """
    found, model = answer["results"][0], answer["model"]
    width, height = found["width"], found["height"]
    results, scores = [], []
    for index, each in enumerate(found["detections"]):
        box = each["box"]
        scores.append(each["score"])
        results.append({
            "id": str(index),
            "type": "rectanglelabels",
            "from_name": "label",
            "to_name": "image",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "score": each["score"],
            "value": {
                "x": 100 * box["x1"] / width,
                "y": 100 * box["y1"] / height,
                "width": 100 * (box["x2"] - box["x1"]) / width,
                "height": 100 * (box["y2"] - box["y1"]) / height,
                "rotation": 0,
                "rectanglelabels": [each["class_name"]],
            },
        })  # fmt: skip
    prediction = {
        "model_version": f"{model['name']} {model['version']}",
        # Label Studio can order tasks by it: the least sure first.
        "score": min(scores, default=1.0),
        "result": results,
    }
    return {"data": {"image": image}, "predictions": [prediction]}


def main() -> None:
    """Writes the tasks of a folder to the standard output."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prefix", required=True, help="what Label Studio has before a file name")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--api-key")
    parser.add_argument("--conf", type=float, default=0.25)
    chosen = parser.parse_args()
    headers = {"X-API-Key": chosen.api_key} if chosen.api_key else {}
    paths = sorted(path for path in chosen.folder.iterdir() if path.suffix.lower() in FORMATS)
    tasks = []
    with httpx.Client(base_url=chosen.url, headers=headers, timeout=60) as client:
        for path in paths:
            try:
                tasks.append(
                    task(detected(client, path, chosen.conf), chosen.prefix + quote(path.name))
                )
            except httpx.HTTPStatusError as error:
                print(f"{path}: {error.response.text}", file=sys.stderr)
    json.dump(tasks, sys.stdout, indent=1, ensure_ascii=False)
    if len(tasks) < len(paths):
        sys.exit(1)


if __name__ == "__main__":
    main()
