"""Figures of several runs, as text."""

import statistics
from collections.abc import Mapping, Sequence


def print_spread(runs: Sequence[Mapping[str, float]]) -> None:
    """Prints minimum, median and maximum of each figure, a line each.

    Args:
        runs: at least one, each with the same figures.
    """
    for figure in runs[0]:
        values = [run[figure] for run in runs]
        print(
            f"{figure:<26} min {min(values):8.2f}  median {statistics.median(values):8.2f}"
            f"  max {max(values):8.2f}"
        )
