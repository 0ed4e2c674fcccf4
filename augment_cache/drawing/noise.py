"""Random fields that the drawings are textured with, and the one way a generator is made."""

import cv2
import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]
"""float32 [height, width], or [height, width, 3] for colours (RGB, 0 to 255)."""

Rng = np.random.Generator


def generator(seed: int, index: int) -> Rng:
    """A counter-based generator: the stream is a function of the two numbers (0 to 2**64 - 1) and of nothing else."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, index], dtype=np.uint64)))


def between(rng: Rng, low: float, high: float) -> float:
    """A plain number from `low` to `high`, all equally likely."""
    return float(rng.uniform(low, high))


def smooth(rng: Rng, height: int, width: int, cell: float, *, stretch: float = 1.0) -> Field:
    """Value noise: random numbers on a coarse grid, joined by cubics.

    Args:
        rng: Where the numbers come from.
        height: Rows, in px.
        width: Columns, in px.
        cell: Distance of the grid's points, in px.
        stretch: Factor by which the grid is wider along x: streaks for values above 1.

    Returns:
        float32 [height, width], about -1 to 1.
    """
    rows, columns = max(2, round(height / cell) + 1), max(2, round(width / (cell * stretch)) + 1)
    grid = rng.uniform(-1.0, 1.0, (rows, columns)).astype(np.float32)
    return np.asarray(cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC), dtype=np.float32)


def layered(rng: Rng, height: int, width: int, cell: float, octaves: int = 3, *, stretch: float = 1.0) -> Field:
    """`smooth` noise at `cell`, `cell / 2`, … px, each half as strong as the one before."""
    total = np.zeros((height, width), dtype=np.float32)
    for octave in range(octaves):
        total += 0.5**octave * smooth(rng, height, width, max(cell / 2**octave, 1.0), stretch=stretch)
    return total


def facets(rng: Rng, side: int, count: int) -> Field:
    """A crumpled surface: flat facets, each tilted its own way, with sharp creases between them.

    Returns:
        float32 [side, side], about -1 to 1: how bright each facet is.
    """
    coarse = min(side, 112)  # creases survive the enlargement; the distance table is what costs time
    points = rng.uniform(-0.1, 1.1, (count, 2)).astype(np.float32)
    tilt = rng.uniform(-1.0, 1.0, (count, 3)).astype(np.float32)
    axis = (np.arange(coarse, dtype=np.float32) + 0.5) / coarse
    x, y = np.meshgrid(axis, axis)
    x = x + 0.04 * smooth(rng, coarse, coarse, coarse / 6)
    distance = (x[..., None] - points[:, 0]) ** 2 + (y[..., None] - points[:, 1]) ** 2
    nearest = distance.argmin(axis=2)
    reach = np.float32(1.2 * np.sqrt(count))
    slope = (x - points[nearest, 0]) * tilt[nearest, 1] + (y - points[nearest, 1]) * tilt[nearest, 2]
    tone = (0.7 * tilt[nearest, 0] + reach * slope).astype(np.float32)
    return np.asarray(cv2.resize(tone, (side, side), interpolation=cv2.INTER_LINEAR), dtype=np.float32)


def folds(rng: Rng, side: int, cell: float, *, stretch: float = 1.0) -> Field:
    """Soft folds of a thin foil: bright, narrow ridges.

    Args:
        rng: Where the numbers come from.
        side: Rows and columns, in px.
        cell: Mean distance of the folds, as a share of the side.
        stretch: Above 1 the folds run along x, below 1 along y.

    Returns:
        float32 [side, side], 0 to 1; 1 is the top of a ridge.
    """
    field = layered(rng, side, side, cell * side, 2, stretch=stretch)
    return np.asarray(np.clip(1.0 - 3.2 * np.abs(field), 0.0, 1.0) ** 1.5, dtype=np.float32)


def beads(rng: Rng, side: int, across: int) -> Field:
    """Expanded foam: round cells side by side, dark in the gaps.

    Args:
        rng: Where the numbers come from.
        side: Rows and columns, in px.
        across: Cells along a side.

    Returns:
        float32 [side, side], 0 (gap) to 1 (middle of a bead), with a tone of its own for each bead.
    """
    axis = (np.arange(side, dtype=np.float32) + 0.5) / side * across
    x, y = np.meshgrid(axis, axis)
    x, y = x + 0.30 * smooth(rng, side, side, side / across), y + 0.30 * smooth(rng, side, side, side / across)
    row = np.floor(y / 0.87).astype(np.int64)
    x = x + 0.5 * (row % 2)
    column = np.floor(x).astype(np.int64)
    from_middle = (x - column - 0.5) ** 2 + (y - 0.87 * (row + 0.5)) ** 2
    tone = rng.uniform(0.75, 1.0, (across * 2, across * 2)).astype(np.float32)
    dome = np.clip(1.25 - 3.2 * from_middle, 0.0, 1.0)
    return np.asarray(dome * tone[row % (across * 2), column % (across * 2)], dtype=np.float32)
