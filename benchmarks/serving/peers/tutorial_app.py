"""The form that tutorials teach: FastAPI calls `YOLO(...)(image)`. One process, torch's threads.

PEER_CHECKPOINT=model.pt PEER_PORT=8000 python -m benchmarks.serving.peers.tutorial_app
"""

import os
from typing import Annotated, Any

import cv2
import numpy as np
import uvicorn
from fastapi import Body, FastAPI

# Puts our blocks where ultralytics looks for a checkpoint's classes.
from model.registration import register

register()
from ultralytics import YOLO  # noqa: E402

app = FastAPI()
yolo: Any = None


@app.post("/detect")
def detect(image: Annotated[bytes, Body(media_type="image/jpeg")]) -> dict[str, Any]:
    """Decodes, predicts, and lets FastAPI write the JSON, as tutorials do."""
    pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
    result = yolo(
        pixels,
        conf=float(os.environ["PEER_CONF"]),
        max_det=int(os.environ["PEER_MAX_DET"]),
        verbose=False,
    )[0]
    names = result.names
    return {
        "detections": [
            {
                "class_id": int(class_id),
                "class_name": names[int(class_id)],
                "score": score,
                "box": dict(zip(("x1", "y1", "x2", "y2"), box, strict=True)),
            }
            for box, score, class_id in zip(
                result.boxes.xyxy.tolist(),
                result.boxes.conf.tolist(),
                result.boxes.cls.tolist(),
                strict=True,
            )
        ]
    }


if __name__ == "__main__":
    yolo = YOLO(os.environ["PEER_CHECKPOINT"])
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(os.environ["PEER_PORT"]),
        log_level="warning",
        access_log=False,
    )
