"""Makes tests/gpu/expected_detections.json: what the default weights find in samples/.

    python -m tests.support.expected_detections

In float32 on a CPU, with the server's default thresholds. Rows: x1, y1, x2, y2 in pixels of the
image, score, class id; best score first.
"""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from server.inference.artifact import load_artifact
from server.inference.detector import Detector, ImageDetections
from server.inference.session import Session
from server.vision.nms import DetectParameters
from tests.support.sample_images import REPO, sample_images

FILE = Path(__file__).parents[1] / "gpu" / "expected_detections.json"


def rows_of(found: ImageDetections) -> NDArray[np.float32]:
    """(N, 6) of one image."""
    each = found.detections
    rows = np.column_stack([each.boxes, each.scores, each.class_ids])
    return rows.astype(np.float32).reshape(-1, 6)


def main() -> None:
    """Writes the file."""
    artifact = load_artifact(REPO / "weights" / "yolov8n-fla-bccd.onnx")
    detector = Detector(artifact, Session.open(artifact, device="cpu"))
    found = detector.detect(sample_images(), DetectParameters())
    lines = []
    for i, each in enumerate(found, start=1):
        rows = [[round(float(value), 4) for value in row] for row in rows_of(each)]
        listed = ",\n  ".join(json.dumps(row) for row in rows)
        lines.append(f' "smear_{i}.jpg": [\n  {listed}\n ]')
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
