"""Names and scores beside the boxes of an image: fitted, placed apart and written.

OpenCV's built-in font has Latin, Greek, Cyrillic, Chinese, Japanese and Korean. A name that it
can't write (Thai, emoji), or not in its order (Hebrew, Arabic), is written as its class id, `#3`.
"""

import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from server.vision.palette import Colour, text_colour

FONT = "uni"
ELLIPSIS = "…"
LEAST_NAME = 3  # characters; for more of the name, a label goes without its score
RIGHT_TO_LEFT = {"R", "AL", "RLE", "RLO", "RLI"}
NEVER_WRAP = (-(2**30), 2**30)
WIDEST = 0.4  # of the image, for the label of a box that is narrower
# What a label that covers all of another box counts beside one that covers another label.
COVERED_BOX_COST = 0.3


@dataclass(frozen=True, slots=True)
class Label:
    """What is written beside one box.

    Attributes:
        class_id: >= 0.
        name: of the class, in any script.
        score: 0..1.
        box: x1, y1, x2, y2 in pixels of the image, its lines included.
        colour: behind the text.
    """

    class_id: int
    name: str
    score: float
    box: tuple[int, int, int, int]
    colour: Colour


def draw_labels(image: NDArray[np.uint8], labels: Sequence[Label], text_px: int) -> None:
    """Writes labels into an image.

    Args:
        image: (H, W, 3) uint8 RGB; changed.
        labels: best first. Each finds its place beside those before it, and lies below them where
            there is no room.
        text_px: height of the letters with what reaches above and below them.
    """
    if labels:
        # OpenCV keeps its font, 6 MB, for each thread that writes: one writes for all.
        _pen().submit(_draw, image, labels, text_px).result()


def fitted_text(label: Label, text_px: int, max_width: int) -> str:
    """Name and score, with the name shortened until both fit; then the name alone; or nothing.

    Args:
        label: of one box.
        text_px: as of `draw_labels`.
        max_width: pixels.
    """
    name, score = written_name(label.name, label.class_id), f" {label.score:.2f}"
    if text_width(name + score, text_px) <= max_width:
        return name + score
    for tail, least in ((score, LEAST_NAME), ("", 1)):
        if tail == "" and text_width(name, text_px) <= max_width:
            return name
        # The longest beginning that fits; a longer text is never narrower.
        fits, too_long = 0, len(name)
        while too_long - fits > 1:
            half = (fits + too_long) // 2
            if text_width(name[:half].rstrip() + ELLIPSIS + tail, text_px) <= max_width:
                fits = half
            else:
                too_long = half
        if fits >= least:
            return name[:fits].rstrip() + ELLIPSIS + tail
    return ""


@lru_cache(maxsize=4096)
def written_name(name: str, class_id: int) -> str:
    """A class name as the font can write it: on one line, without what can't be seen, or `#id`."""
    # A lone surrogate would end the process, inside OpenCV.
    name = name.encode("utf-8", "replace").decode()
    name = " ".join(unicodedata.normalize("NFC", name).split())
    name = "".join(each for each in name if unicodedata.category(each)[0] != "C")
    return name if name and all(map(_writable, name)) else f"#{class_id}"


def text_width(text: str, text_px: int) -> int:
    """Pixels."""
    font = cv2.FontFace(FONT)
    return int(cv2.getTextSize((0, 0), text, (0, 0), font, text_px, wrap=NEVER_WRAP)[2])


@lru_cache(maxsize=4096)
def _writable(character: str) -> bool:
    if unicodedata.bidirectional(character) in RIGHT_TO_LEFT or unicodedata.combining(character):
        return False
    return character == "?" or not np.array_equal(_glyph(character), _glyph("?"))


def _glyph(character: str) -> NDArray[np.uint8]:
    """How a character looks; one that the font does not have looks like a question mark."""
    canvas = np.zeros((32, 48), np.uint8)
    cv2.putText(canvas, character, (8, 24), (255,), cv2.FontFace(FONT), 20, wrap=NEVER_WRAP)
    return canvas


@cache
def _pen() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "labels")


def _draw(image: NDArray[np.uint8], labels: Sequence[Label], text_px: int) -> None:
    image_hw = image.shape[0], image.shape[1]
    pad = max(1, round(text_px * 0.2))
    height = round(text_px * 1.1) + 2 * (pad // 2)
    boxes = np.array([label.box for label in labels], np.int64)
    placed = np.empty((0, 4), np.int64)
    written: list[tuple[Label, str]] = []
    for index, label in enumerate(labels):
        box_width = label.box[2] - label.box[0]
        widest = min(image_hw[1], max(box_width, round(WIDEST * image_hw[1]), 8 * text_px))
        text = fitted_text(label, text_px, widest - 2 * pad)
        if not text:
            continue
        width_height = text_width(text, text_px) + 2 * pad, height
        others = np.delete(boxes, index, axis=0)
        place = _best_place(label.box, width_height, placed, others, image_hw)
        placed = np.vstack([placed, place])
        written.append((label, text))
    font = cv2.FontFace(FONT)
    for (label, text), place in zip(reversed(written), placed[::-1].tolist(), strict=True):
        x1, y1, x2, y2 = place
        image[y1:y2, x1:x2] = label.colour
        # Inside of its own place: what a letter has beside it would be over the neighbours.
        area = image[y1:y2, x1:x2]
        baseline = (pad, pad // 2 + round(text_px * 0.86))
        colour = text_colour(label.colour)
        area[:] = cv2.putText(
            np.ascontiguousarray(area), text, baseline, colour, font, text_px, wrap=NEVER_WRAP
        )[1]


def _best_place(
    box: tuple[int, int, int, int],
    width_height: tuple[int, int],
    placed: NDArray[np.int64],
    others: NDArray[np.int64],
    image_hw: tuple[int, int],
) -> NDArray[np.int64]:
    """Where a label covers the least: of other labels, then of other boxes; first above its box.

    Args:
        box: its own, xyxy.
        width_height: of the label.
        placed: (P, 4) xyxy, labels that have their places.
        others: (N, 4) xyxy, boxes of others.
        image_hw: places are inside of it, as far as it is large enough.

    Returns:
        (4,) xyxy.
    """
    x1, y1, x2, y2 = box
    width, height = width_height
    left, right = x1, x2 - width
    corners = np.array([
        (left, y1 - height), (right, y1 - height),  # above
        (left, y2), (right, y2),  # below
        (left, y1), (right, y1), (left, y2 - height), (right, y2 - height),  # inside
        (x2, y1), (x1 - width, y1), (x2, y2 - height), (x1 - width, y2 - height),  # beside
    ], np.int64)  # fmt: skip
    last = np.maximum(0, np.array([image_hw[1] - width, image_hw[0] - height]))
    corners = np.clip(corners, 0, last)
    places = np.hstack([corners, np.minimum(corners + width_height, image_hw[::-1])])
    # Of a thousand boxes few are near: the rest would take a second of the one thread that writes.
    placed, others = _near(placed, places), _near(others, places)
    cost = _overlaps(places, placed).sum(axis=1).astype(np.float64)
    areas = np.maximum(1, (others[:, 2:] - others[:, :2]).prod(axis=1))
    covered = (_overlaps(places, others) / areas).sum(axis=1)
    cost += COVERED_BOX_COST * width * height * covered
    best: NDArray[np.int64] = places[np.argmin(cost)]
    return best


def _near(boxes: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of (N, 4) xyxy that may share pixels with one of the places, (M, 4) xyxy."""
    low, high = places[:, :2].min(axis=0), places[:, 2:].max(axis=0)
    near: NDArray[np.int64] = boxes[((boxes[:, 2:] > low) & (boxes[:, :2] < high)).all(axis=1)]
    return near


def _overlaps(ours: NDArray[np.int64], theirs: NDArray[np.int64]) -> NDArray[np.int64]:
    """(M, 4) and (N, 4) xyxy to (M, N) pixels that each two share."""
    corner = np.maximum(ours[:, None, :2], theirs[None, :, :2])
    opposite = np.minimum(ours[:, None, 2:], theirs[None, :, 2:])
    shared: NDArray[np.int64] = np.maximum(0, opposite - corner).prod(axis=2)
    return shared
