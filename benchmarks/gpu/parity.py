"""Does the device find what the CPU found? A short check before anything is timed."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.bench import MAX_PIXELS, PARAMETERS, Bench, Figures
from server.inference.artifact import Artifact
from server.inference.detector import finish, prepare_encoded
from server.inference.engine import OpenSession

SAME_IOU = 0.5  # boxes of one class that overlap more are the same detection


@dataclass(frozen=True, slots=True)
class Found:
    """Detections of one image: (N, 4) float32 xyxy in original pixels, (N,) and (N,)."""

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    class_ids: NDArray[np.int64]


def measure(bench: Bench) -> Generator[Figures]:
    """Each model with attention against the expected detections; int8 only where it runs."""
    figures: Figures = {"models": {}}
    if bench.inputs.expected is None:
        yield figures | {"note": "the inputs hold no expected detections"}
        return
    expected = read_found(bench.inputs.expected)
    for precision in bench.precisions:
        artifact = bench.artifact(f"fla-{precision}")
        with bench.session(artifact, 1) as session:
            found = detections(session, artifact, bench.images)
        figures["models"][precision] = agreement(expected, found)
        yield figures


def detections(session: OpenSession, artifact: Artifact, images: Sequence[bytes]) -> list[Found]:
    """What a session finds in encoded images, one at a time."""
    results = []
    for image in images:
        prepared, _ = prepare_encoded(
            image, artifact.metadata, max_pixels=MAX_PIXELS, dct_scaling=True
        )
        (rows,) = session.run(prepared.canvas[None])
        found = finish(rows, prepared, artifact.metadata, PARAMETERS).detections
        results.append(Found(found.boxes, found.scores, np.asarray(found.class_ids, np.int64)))
    return results


def agreement(expected: Sequence[Found], found: Sequence[Found]) -> dict[str, float | int]:
    """How far two lists of detections, by image, are the same.

    Returns:
        `expected`, `found`: how many detections; `same`: of them, pairs of one class that overlap;
        `box_px`, `score`: the largest difference in a pair.
    """
    pairs, box_px, score = 0, 0.0, 0.0
    for ours, theirs in zip(expected, found, strict=True):
        free = np.ones(len(theirs.scores), bool)
        for box, own, class_id in zip(ours.boxes, ours.scores, ours.class_ids, strict=True):
            overlaps = np.where(free & (theirs.class_ids == class_id), iou(box, theirs.boxes), 0)
            if not len(overlaps) or overlaps.max() < SAME_IOU:
                continue
            best = int(overlaps.argmax())
            free[best] = False
            pairs += 1
            box_px = max(box_px, float(np.abs(theirs.boxes[best] - box).max()))
            score = max(score, float(abs(theirs.scores[best] - own)))
    return {
        "expected": sum(len(each.scores) for each in expected),
        "found": sum(len(each.scores) for each in found),
        "same": pairs,
        "box_px": box_px,
        "score": score,
    }


def iou(box: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
    """The overlap of a box (4,) with others (N, 4), xyxy: (N,), 0 where there is none."""
    corners = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = (corners[1] - corners[0]).clip(0).prod(axis=1)
    areas = (others[:, 2:] - others[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod() - shared
    return np.asarray(shared / np.maximum(areas, np.finfo(np.float32).tiny), np.float32)


def write_found(found: Sequence[Found], path: Path) -> None:
    """Keeps detections by image."""
    arrays: dict[str, NDArray[Any]] = {}
    for i, each in enumerate(found):
        arrays |= {f"{i}.boxes": each.boxes, f"{i}.scores": each.scores}
        arrays[f"{i}.class_ids"] = each.class_ids
    np.savez_compressed(path, allow_pickle=False, **arrays)


def read_found(path: Path) -> list[Found]:
    """What `write_found` kept."""
    with np.load(path) as arrays:
        return [
            Found(*(arrays[f"{i}.{name}"] for name in ("boxes", "scores", "class_ids")))
            for i in range(len(arrays.files) // 3)
        ]
