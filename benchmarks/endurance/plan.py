"""What all scenarios are told."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from server.settings import Settings


@dataclass(frozen=True, slots=True)
class Plan:
    """Durations, counts and what to run on.

    Attributes:
        flags: of `python -m server`.
        settings: as the server reads them.
        python: whose environment serves.
        images: a folder with JPEGs, some of them 640 x 480.
        artifacts: two different files of models with the same classes, for reloads.
        times: of saturation, that the overload offers.
        seed: of all chance.
    """

    flags: Sequence[str]
    settings: Settings
    python: str
    images: Path
    artifacts: tuple[Path, Path]
    saturation_s: float
    overload_s: float
    times: float
    mixed_s: float
    reloads: int
    drains: int
    fairness_s: float
    seed: int
