"""Numbers in bins, and bins as bars made of block characters."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MOST_BINS = 20
EIGHTHS = " ▏▎▍▌▋▊▉"


class Spread(NamedTuple):
    """How often each value occurs: all that is kept of a column, and exact all the same."""

    values: NDArray[np.int64]
    """Distinct values, ascending."""
    counts: NDArray[np.int64]
    """How often each occurs, at least once."""

    @property
    def total(self) -> int:
        """Sum of all values."""
        return int(self.values @ self.counts)

    def median(self) -> float:
        """The middle value, or half-way between the two in the middle; needs at least one value."""
        ends = np.cumsum(self.counts)
        middle = np.array([(ends[-1] - 1) // 2, ends[-1] // 2])
        return float(self.values[np.searchsorted(ends, middle, side="right")].mean())


def spread_of(values: NDArray[np.int64]) -> Spread:
    """Count the distinct values of an array."""
    return Spread(*np.unique(values, return_counts=True))


def merged(first: Spread, second: Spread) -> Spread:
    """Two spreads as one."""
    values, places = np.unique(np.concatenate([first.values, second.values]), return_inverse=True)
    counts = np.zeros(len(values), np.int64)
    np.add.at(counts, places.ravel(), np.concatenate([first.counts, second.counts]))
    return Spread(values, counts)


def round_edges(least: int, most: int, bins: int = MOST_BINS) -> NDArray[np.int64]:
    """Edges at multiples of 1, 2 or 5 times a power of ten.

    Args:
        least: Smallest value.
        most: Largest value.
        bins: Most bins that are wanted, at least 2.

    Returns:
        int64 [bins + 1], ascending; the first is at most `least`, the last is above `most`.
    """
    step, factors = 1, 0
    while most // step - least // step + 1 > bins:
        factors += 1
        step = (1, 2, 5)[factors % 3] * 10 ** (factors // 3)
    return np.arange(least // step, most // step + 2, dtype=np.int64) * step


def binned(spread: Spread, edges: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many values lie in each bin, int64 [edges - 1]; a bin holds its lower edge and not its upper one."""
    places = np.searchsorted(edges, spread.values, side="right") - 1
    counts = np.zeros(len(edges) - 1, np.int64)
    np.add.at(counts, places, spread.counts)
    return counts


def bar(share: float, width: int) -> str:
    """A bar of up to `width` characters in steps of an eighth; what is more than nothing shows.

    Args:
        share: 0 to 1.
        width: Characters of the whole bar.
    """
    eighths = max(round(share * width * 8), 1 if share > 0 else 0)
    return ("█" * (eighths // 8) + EIGHTHS[eighths % 8]).rstrip()
