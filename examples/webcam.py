"""Detects objects in a camera, a video file or an RTSP stream, always in the newest frame.

    python examples/webcam.py 0 --show
    python examples/webcam.py rtsp://camera/stream --output annotated.mp4
    python examples/webcam.py drive.mp4 --output annotated.mp4 --every-frame

A thread reads frames as fast as they come and keeps only the last: while the server is busy, frames
are dropped instead of queued, so what is shown is never old. Stop with Ctrl-C.
"""

import argparse
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from yolov8_fla_client import Client, DetectClientError, Detection, Retry, Unavailable, Unreachable

Frame = NDArray[np.uint8]
DEFAULT_URL = "http://127.0.0.1:8000"
GREEN = (0, 200, 0)
READER = "frames"  # the thread's name
LONGEST_WAIT_S = 30.0


class SourceError(Exception):
    """The frames can't be read, or the video can't be written."""


class NewestFrame:
    """Reads a source on a thread of its own and keeps one frame.

    Args:
        source: a camera's number, a file or a URL.
        every_frame: for files: the reader waits until each frame was taken. Otherwise a file is
            read at its own rate, like a camera.

    Attributes:
        fps: frames a second, as the source says; 25 where it doesn't.
        is_file: it has an end; a camera or a stream that ends has failed.
    """

    def __init__(self, source: str, *, every_frame: bool = False) -> None:
        self._capture = cv2.VideoCapture(int(source) if source.isdigit() else source)
        if not self._capture.isOpened():
            raise SourceError(f"{source} can't be opened")
        self.fps = self._capture.get(cv2.CAP_PROP_FPS) or 25.0
        self.is_file = self._capture.get(cv2.CAP_PROP_FRAME_COUNT) > 0
        self._pause_s = 1 / self.fps if self.is_file and not every_frame else 0.0
        self._every_frame = every_frame
        self._newest: tuple[int, Frame] | None = None
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._read, name=READER, daemon=True)
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


class Video:
    """A video file that is written under another name until it is whole.

    Args:
        path: ends in .mp4 or .avi.
        fps: frames a second.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self._path, self._fps = path, fps
        self._partial = path.with_name(f"{path.stem}.partial{path.suffix}")
        self._writer: cv2.VideoWriter | None = None

    def write(self, frame: Frame, times: int) -> None:
        """Appends a frame, in place of those that were dropped, too: the video's time runs true."""
        if self._writer is None:
            codec = "MJPG" if self._path.suffix.lower() == ".avi" else "mp4v"
            size = (frame.shape[1], frame.shape[0])
            fourcc = cv2.VideoWriter.fourcc(*codec)
            self._writer = cv2.VideoWriter(str(self._partial), fourcc, self._fps, size)
            if not self._writer.isOpened():
                raise SourceError(f"{self._path} can't be written")
        for _ in range(times):
            self._writer.write(frame)

    def close(self) -> None:
        """Ends the file and gives it its name, if it has a frame."""
        if self._writer is not None and self._writer.isOpened():
            self._writer.release()
            self._partial.replace(self._path)


def detect(client: Client, frame: Frame, conf: float) -> tuple[Detection, ...]:
    """The detections of one frame, best first.

    Raises:
        SourceError: the server does not take such frames, as too large ones.
        DetectClientError: it could not be asked.
    """
    encoded = cv2.imencode(".jpg", frame, (cv2.IMWRITE_JPEG_QUALITY, 90))[1].tobytes()
    (result,) = client.detect(encoded, conf=conf)
    if result.error is not None:
        raise SourceError(f"the frame was refused: {result.error.code}: {result.error.detail}")
    return result.detections


def draw(frame: Frame, detections: Sequence[Detection]) -> None:
    """Draws boxes and names into a frame."""
    font = cv2.FontFace("uni")
    for found in detections:
        box = found.box
        corners = (round(box.x1), round(box.y1)), (round(box.x2), round(box.y2))
        cv2.rectangle(frame, *corners, GREEN, 2)
        text = f"{found.class_name} {found.score:.2f}"
        cv2.putText(frame, text, (corners[0][0], max(14, corners[0][1] - 4)), GREEN, font, 16)


def follow(chosen: argparse.Namespace, frames: NewestFrame, client: Client) -> bool:
    """Asks for every frame that is taken; shows or writes it.

    Returns:
        Whether the source ended; else somebody stopped it.

    Raises:
        DetectClientError: the server can't be reached at the start, refuses what is sent, or has
            not answered for `chosen.patience` seconds.
        SourceError: the video can't be written, or the server does not take such frames.
    """
    video = Video(chosen.output, frames.fps) if chosen.output else None
    detected = refused = objects = 0
    last = -1
    again: tuple[int, Frame] | None = None  # was refused; a newer one takes its place
    answered_s = time.monotonic()
    try:
        while taken := (chosen.every_frame and again) or frames.take() or again:
            number, frame = taken
            try:
                found = detect(client, frame, chosen.conf)
            except (Unavailable, Unreachable) as error:
                away = isinstance(error, Unreachable) and not detected
                if away or time.monotonic() - answered_s > chosen.patience:
                    raise
                wait_s = getattr(error, "retry_after_s", None) or 1.0
                print(f"{error}; waiting", file=sys.stderr)
                again, refused = taken, refused + 1
                time.sleep(min(LONGEST_WAIT_S, wait_s))
                continue
            again, answered_s = None, time.monotonic()
            detected, objects = detected + 1, objects + len(found)
            draw(frame, found)
            if video:
                video.write(frame, number - last)
            last = number
            if chosen.show:
                cv2.imshow("detections", frame)
                if cv2.waitKey(1) == ord("q"):
                    return False
        return True
    except KeyboardInterrupt:
        return False
    finally:
        frames.close()
        if video:
            video.close()
        print(f"{last + 1} frames came, {detected} were detected, {refused} refusals,", end=" ")
        print(f"{objects} objects")


def main(arguments: Sequence[str] | None = None) -> int:
    """Follows a source to its end; 1 where a camera or stream ended, 2 where an error did it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("source", help="camera number, video file or URL")
    parser.add_argument("--url", default=os.environ.get("FLA_CLIENT_URL") or DEFAULT_URL)
    parser.add_argument("--api-key", default=os.environ.get("FLA_CLIENT_API_KEY") or None)
    parser.add_argument("--conf", type=float, default=0.25)
    parser.add_argument("--output", type=Path, help="write an annotated video (.mp4 or .avi)")
    parser.add_argument("--every-frame", action="store_true", help="drop none; for files")
    parser.add_argument("--patience", type=float, default=300.0, help="seconds without an answer")
    parser.add_argument("--show", action="store_true", help="a window; needs opencv-python")
    chosen = parser.parse_args(arguments)
    try:
        # Not asked again by the client: by then there is a newer frame.
        once = Retry(attempts=1)
        with Client(chosen.url, api_key=chosen.api_key, retry=once) as client:
            frames = NewestFrame(chosen.source, every_frame=chosen.every_frame)
            ended = follow(chosen, frames, client)
    except (DetectClientError, SourceError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if ended and not frames.is_file:
        print(
            f"{chosen.source} is over: unplugged, stopped there, or out of reach", file=sys.stderr
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
