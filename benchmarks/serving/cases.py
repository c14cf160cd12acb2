"""What is measured: the cases, and who takes part in each."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.load.contestants import Thresholds

MANY_BOXES = Thresholds(conf=0.001, max_det=300)
# Which box is the 300th is decided by the last bits of scores, which threads and batches change.
MANY_BOXES_SLACK = 0.03


@dataclass(frozen=True, slots=True)
class Entry:
    """One contestant in one case.

    Attributes:
        name: as the tables call it; unique in its case.
        kind: our server, the limit, or the peer of that name.
        model: the artifact's file; the checkpoint's for the tutorial form.
    """

    name: str
    kind: Literal["ours", "limit", "mosec", "litserve", "fastapi", "tutorial"]
    model: Path


@dataclass(frozen=True, slots=True)
class Case:
    """Contestants that are compared with each other.

    Attributes:
        name: for the figures.
        title: for people.
        clients: closed-loop clients; 1 measures latency, and peers get all CPUs for one request.
        wide: 16:9 images instead of 640 x 480.
        thresholds: of the NMS.
        slack: by which share the number of boxes in an answer may be off.
        entries: at least two.
    """

    name: str
    title: str
    clients: int
    wide: bool
    thresholds: Thresholds
    slack: float
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Models:
    """The files that are served.

    Attributes:
        fp32, int8: artifacts of one model with several buckets; int8 may be missing.
        square: fp32 with its largest bucket alone.
        checkpoint: what they were exported from.
    """

    fp32: Path
    square: Path
    int8: Path | None
    checkpoint: Path


def cases(models: Models, peers: Sequence[str], clients: int) -> list[Case]:
    """All cases, for the peers that take part."""
    ours, limit = Entry("ours", "ours", models.fp32), Entry("limit", "limit", models.fp32)
    others = [_peer(name, models.fp32, models.checkpoint) for name in peers]
    square = [_peer(name, models.square, models.checkpoint) for name in peers if name != "tutorial"]
    ours_int8, limit_int8 = [], []
    if models.int8:
        ours_int8 = [Entry("ours, int8", "ours", models.int8)]
        limit_int8 = [Entry("limit, int8", "limit", models.int8)]
    usual = Thresholds()
    return [
        Case(
            "saturated",
            f"{clients} clients, 640×480 photos, everyone at the same shape",
            clients,
            False,
            usual,
            0.0,
            (ours, limit, *others, *ours_int8, *limit_int8),
        ),
        Case(
            "wide",
            f"{clients} clients, 16:9 photos, peers at the square shape",
            clients,
            True,
            usual,
            0.0,
            (ours, Entry("ours, square", "ours", models.square), *square, *ours_int8),
        ),
        Case(
            "many_boxes",
            f"{clients} clients, 640×480 photos, conf=0.001, up to 300 boxes an answer",
            clients,
            False,
            MANY_BOXES,
            MANY_BOXES_SLACK,
            (ours, *(each for each in others if each.kind != "tutorial")),
        ),
        Case(
            "lone",
            "one client at a time, 640×480 photos, everyone at the same shape",
            1,
            False,
            usual,
            0.0,
            (ours, limit, *others, *ours_int8, *limit_int8),
        ),
    ]


def _peer(name: str, artifact: Path, checkpoint: Path) -> Entry:
    if name == "tutorial":
        return Entry("tutorial", "tutorial", checkpoint)
    if name == "mosec":
        return Entry("mosec", "mosec", artifact)
    if name == "litserve":
        return Entry("LitServe", "litserve", artifact)
    assert name == "fastapi"
    return Entry("FastAPI", "fastapi", artifact)
