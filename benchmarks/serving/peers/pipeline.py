"""The pipeline that every peer serves: our decode, letterbox, session and NMS, no HTTP of ours.

A peer differs from us in its serving alone. It is told by the environment what to serve, as not
every framework hands a worker its arguments.
"""

import os
from pathlib import Path

import cv2
import orjson

from server.inference.artifact import load_artifact
from server.inference.detector import ImageDetections, finish, prepare_encoded
from server.inference.session import Session
from server.vision.nms import DetectParameters

MAX_PIXELS = 50_000_000


class Pipeline:
    """One image in, JSON out. `__call__` may be called from several threads at once.

    Reads PEER_ARTIFACT, PEER_THREADS (of one inference), PEER_SPINNING (0 or 1: the session's
    threads wait busily), PEER_CONF and PEER_MAX_DET.
    """

    def __init__(self) -> None:
        cv2.setNumThreads(1)  # as in our server: workers, not OpenCV, share the CPUs
        artifact = load_artifact(Path(os.environ["PEER_ARTIFACT"]))
        self._metadata = artifact.metadata
        self._session = Session.open(
            artifact,
            device="cpu",
            threads=int(os.environ["PEER_THREADS"]),
            spinning=os.environ["PEER_SPINNING"] == "1",
        )
        self._session.warm_up([1])
        self._parameters = DetectParameters(
            conf=float(os.environ["PEER_CONF"]), max_det=int(os.environ["PEER_MAX_DET"])
        )

    def __call__(self, image: bytes) -> bytes:
        """An image file to its detections, as a JSON text."""
        prepared, _ = prepare_encoded(
            image, self._metadata, max_pixels=MAX_PIXELS, dct_scaling=True
        )
        (candidates,) = self._session.run(prepared.canvas[None])
        found = finish(candidates, prepared, self._metadata, self._parameters)
        return answer_json(found, self._metadata.class_names)


def answer_json(found: ImageDetections, class_names: tuple[str, ...]) -> bytes:
    """What our server says of each detection, in the same words."""
    detections = found.detections
    return orjson.dumps(
        {
            "width": found.width,
            "height": found.height,
            "detections": [
                {
                    "class_id": class_id,
                    "class_name": class_names[class_id],
                    "score": score,
                    "box": {"x1": x1, "y1": y1, "x2": x2, "y2": y2},
                }
                for (x1, y1, x2, y2), score, class_id in zip(
                    detections.boxes.astype(float).round(2).tolist(),
                    detections.scores.astype(float).round(5).tolist(),
                    detections.class_ids.tolist(),
                    strict=True,
                )
            ],
        }
    )
