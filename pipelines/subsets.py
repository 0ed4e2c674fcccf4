"""Parts of a data set that keep the shares of its classes: a fraction of it, or one fold of several.

Pure functions of (seed, groups, labels). A group is what must not be torn apart: a sample with its augmented copies has
one id, so all of them fall on the same side.
"""

import numpy as np
from numpy.typing import NDArray

from pipelines import philox
from pipelines.plan import Stage

_FRACTION, _FOLD = 2, 3
"""Blocks of random numbers; those below are in `pipelines.order`."""


def fraction(groups: NDArray[np.uint64], labels: NDArray[np.int64], share: float, *, seed: int) -> NDArray[np.int64]:
    """A random part of each class, at least one group of it. Smaller parts lie within larger ones of the same seed.

    Args:
        groups: uint64 [n]; sample id of each row.
        labels: int64 [n]; class index of each row, the same within a group.
        share: In (0, 1].
        seed: 0 to 2**64 - 1.

    Returns:
        int64; positions, ascending.

    Raises:
        ValueError: The share is out of range.
    """
    if not 0.0 < share <= 1.0:
        raise ValueError(f"share must be in (0, 1], got {share}")
    rank, size = _places(groups, labels, seed, _FRACTION)
    return np.flatnonzero(rank < np.maximum(np.rint(share * size), 1)).astype(np.int64)


def fold(
    groups: NDArray[np.uint64], labels: NDArray[np.int64], *, number: int, of: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cross-validation: everything but one fold, and that fold. Over all numbers each row is held out once.

    Args:
        groups: uint64 [n]; sample id of each row.
        labels: int64 [n]; class index of each row, the same within a group.
        number: Which fold, 0 to of - 1.
        of: Number of folds, at least 2. In each class, folds differ by at most one group.
        seed: 0 to 2**64 - 1.

    Returns:
        (kept, held out): int64 positions, ascending.

    Raises:
        ValueError: No such fold.
    """
    if not (of >= 2 and 0 <= number < of):
        raise ValueError(f"fold {number} of {of} does not exist; folds are counted from 0, and there are at least 2")
    rank, _ = _places(groups, labels, seed, _FOLD)
    # Classes begin at different folds, or fold 0 would get the odd one of every class.
    held = (rank + labels) % of == number
    return np.flatnonzero(~held).astype(np.int64), np.flatnonzero(held).astype(np.int64)


def _places(
    groups: NDArray[np.uint64], labels: NDArray[np.int64], seed: int, block: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each row the place of its group among those of its class, in random order, and how many these are."""
    ids, first, member = np.unique(groups, return_index=True, return_inverse=True)
    classes = labels[first]
    words = philox.words(seed, ids, 0, Stage.ORDER << 16 | block)
    order = np.lexsort((words[:, 1], words[:, 0], classes))
    starts = np.searchsorted(classes[order], classes)
    place = np.empty(len(ids), np.int64)
    place[order] = np.arange(len(ids))
    sizes = np.searchsorted(classes[order], classes, side="right") - starts
    return (place - starts)[member], sizes[member]
