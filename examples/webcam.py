"""Detects objects in a camera, a video file or an RTSP stream, always in the newest frame.

    python examples/webcam.py 0 --show
    python examples/webcam.py rtsp://camera/stream --output annotated.mp4
    python examples/webcam.py drive.mp4 --output annotated.mp4 --every-frame

A thread reads frames as fast as they come and keeps only the last: while the server is busy, frames
are dropped instead of queued, so what is shown is never old. Stop with Ctrl-C.
"""

import argparse
import sys
import threading
import time
from typing import Any

import cv2
import httpx
import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]
GREEN = (0, 200, 0)


class NewestFrame:
    """Reads a source on a thread of its own and keeps one frame.

    Args:
        source: a camera's number, a file or a URL.
        every_frame: for files: the reader waits until each frame was taken. Otherwise a file is
            read at its own rate, like a camera.
    """

    def __init__(self, source: str, *, every_frame: bool = False) -> None:
        self._capture = cv2.VideoCapture(int(source) if source.isdigit() else source)
        if not self._capture.isOpened():
            raise SystemExit(f"{source} can't be opened")
        self.fps = self._capture.get(cv2.CAP_PROP_FPS) or 25.0
        is_file = self._capture.get(cv2.CAP_PROP_FRAME_COUNT) > 0
        self._pause_s = 1 / self.fps if is_file and not every_frame else 0.0
        self._every_frame = every_frame
        self._newest: tuple[int, Frame] | None = None
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def take(self) -> tuple[int, Frame] | None:
        """The newest frame with its number, from 0, once there is one; None after the last."""
        with self._changed:
            self._changed.wait_for(lambda: self._newest is not None or self._ended)
            taken, self._newest = self._newest, None
            self._changed.notify_all()
            return taken

    def close(self) -> None:
        """Ends the reading."""
        self._stopped.set()
        with self._changed:
            self._newest = None
            self._changed.notify_all()
        self._thread.join(5)

    def _read(self) -> None:
        number = 0
        while not self._stopped.wait(self._pause_s):
            there, frame = self._capture.read()
            if not there:
                break
            with self._changed:
                if self._every_frame:
                    self._changed.wait_for(lambda: self._newest is None)
                self._newest = number, np.asarray(frame, np.uint8)
                self._changed.notify_all()
            number += 1
        self._capture.release()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


def detect(client: httpx.Client, frame: Frame, conf: float) -> list[dict[str, Any]] | float:
    """The detections of one frame; or, where the server has no room now, the seconds to wait."""
    encoded = cv2.imencode(".jpg", frame, (cv2.IMWRITE_JPEG_QUALITY, 90))[1].tobytes()
    try:
        answer = client.post("/detect", params={"conf": conf}, content=encoded)
    except httpx.TransportError as error:
        print(f"{error!r}; next try in 1 s", file=sys.stderr)
        return 1.0
    if answer.status_code == 503:
        return min(30.0, float(answer.headers.get("Retry-After", "1")))
    answer.raise_for_status()
    detections: list[dict[str, Any]] = answer.json()["results"][0]["detections"]
    return detections


def draw(frame: Frame, detections: list[dict[str, Any]]) -> None:
    """Draws boxes and names into a frame."""
    font = cv2.FontFace("uni")
    for found in detections:
        x1, y1, x2, y2 = (round(found["box"][edge]) for edge in ("x1", "y1", "x2", "y2"))
        cv2.rectangle(frame, (x1, y1), (x2, y2), GREEN, 2)
        text = f"{found['class_name']} {found['score']:.2f}"
        cv2.putText(frame, text, (x1, max(14, y1 - 4)), GREEN, font, 16)


def main() -> None:
    """Asks for every frame that is taken; shows or writes it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("source", help="camera number, video file or URL")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--api-key")
    parser.add_argument("--conf", type=float, default=0.25)
    parser.add_argument("--output", help="write an annotated video (.mp4 or .avi)")
    parser.add_argument("--every-frame", action="store_true", help="drop none; for files")
    parser.add_argument("--show", action="store_true", help="a window; needs opencv-python")
    chosen = parser.parse_args()
    headers = {"X-API-Key": chosen.api_key} if chosen.api_key else {}
    frames = NewestFrame(chosen.source, every_frame=chosen.every_frame)
    writer: cv2.VideoWriter | None = None
    detected = refused = objects = 0
    last = -1
    try:
        with httpx.Client(base_url=chosen.url, headers=headers, timeout=30) as client:
            while (taken := frames.take()) is not None:
                number, frame = taken
                found = detect(client, frame, chosen.conf)
                while isinstance(found, float):
                    refused += 1
                    time.sleep(found)
                    if not chosen.every_frame:  # this frame is old by now
                        break
                    found = detect(client, frame, chosen.conf)
                if isinstance(found, float):
                    continue
                detected, objects = detected + 1, objects + len(found)
                draw(frame, found)
                if chosen.output:
                    if writer is None:
                        codec = "MJPG" if chosen.output.endswith(".avi") else "mp4v"
                        fourcc = cv2.VideoWriter.fourcc(*codec)
                        size = (frame.shape[1], frame.shape[0])
                        writer = cv2.VideoWriter(chosen.output, fourcc, frames.fps, size)
                        if not writer.isOpened():
                            raise SystemExit(f"{chosen.output} can't be written")
                    for _ in range(number - last):  # in place of what was dropped: time runs true
                        writer.write(frame)
                last = number
                if chosen.show:
                    cv2.imshow("detections", frame)
                    if cv2.waitKey(1) == ord("q"):
                        break
    except KeyboardInterrupt:
        pass
    finally:
        frames.close()
        if writer is not None:
            writer.release()
    print(
        f"{last + 1} frames came, {detected} were detected, {refused} refusals, {objects} objects"
    )


if __name__ == "__main__":
    main()
