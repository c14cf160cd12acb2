"""Does a series grow? A straight line through it, with its error."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BLOCKS = 20
# More than noise, and more than what an allocator keeps: both have to be seen for a leak.
MOST_GROWTH = 0.02
SURE = 3.0


@dataclass(frozen=True, slots=True)
class Slope:
    """A line through a series.

    Attributes:
        per_unit: slope, y for each unit of x.
        error: its standard error; NaN with fewer than three points.
        growth: of the line from the first x to the last.
        mean: of y.
    """

    per_unit: float
    error: float
    growth: float
    mean: float

    @property
    def flat(self) -> bool:
        """Not both: surely rising, and by more than `MOST_GROWTH` of the mean."""
        rises = self.per_unit > (0.0 if math.isnan(self.error) else SURE * self.error)
        return not (rises and self.growth > MOST_GROWTH * abs(self.mean))


def slope(xs: Sequence[float], ys: Sequence[float], blocks: int = BLOCKS) -> Slope:
    """Least squares through the means of consecutive blocks.

    Neighbouring samples of memory are alike, and each taken as independent would make the error
    far too small; means of blocks are nearly independent.

    Args:
        xs: ascending, at least two different ones.
        ys: as many.
        blocks: how many means at most.

    Raises:
        ValueError: fewer than two different x.
    """
    if len(xs) != len(ys) or len(set(xs)) < 2:
        raise ValueError(f"{len(xs)} x and {len(ys)} y are no line")
    count = min(blocks, len(xs))
    x = np.array([part.mean() for part in np.array_split(np.asarray(xs, np.float64), count)])
    y = np.array([part.mean() for part in np.array_split(np.asarray(ys, np.float64), count)])
    off = x - x.mean()
    spread = float(off @ off)
    per_unit = float(off @ y) / spread
    rest = y - y.mean() - per_unit * off
    error = math.sqrt(float(rest @ rest) / (count - 2) / spread) if count > 2 else math.nan
    return Slope(per_unit, error, per_unit * float(xs[-1] - xs[0]), float(y.mean()))


def second_half(xs: Sequence[float]) -> int:
    """The first index of the later half of the time that ascending `xs` span."""
    middle = (xs[0] + xs[-1]) / 2
    return next(i for i, x in enumerate(xs) if x >= middle)
