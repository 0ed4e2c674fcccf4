"""The order of samples: a pure function of (seed, epoch, length), cut into global batches and then into ranks.

The batch size is the *global* one: all ranks together see the same batches in the same order whatever their number, and
the state of a loader is (epoch, next batch).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines import philox
from pipelines.plan import Stage


def shuffled(length: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """A random permutation of 0 … length - 1.

    Args:
        length: Number of samples.
        seed: 0 to 2**64 - 1.
        epoch: 0 to 2**32 - 1.

    Returns:
        int64 [length].
    """
    return np.argsort(_keys(length, seed, epoch, _SHUFFLE), kind="stable").astype(np.int64)


def balanced(labels: NDArray[np.int64], classes: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """An epoch of as many draws as there are samples, in which every class comes equally often.

    Samples of rare classes come several times, those of frequent classes not all. Within a class, counts differ by at
    most one; which samples come once more is drawn anew in each epoch, and so is which classes get what is left when
    the draws cannot be divided evenly.

    Args:
        labels: int64 [n]; class index of each sample. Classes without a sample take no part, and neither do samples
            whose label is none of the classes, for they are damaged.
        classes: Number of classes.
        seed: 0 to 2**64 - 1.
        epoch: 0 to 2**32 - 1.

    Returns:
        int64 [n]; positions, in random order.
    """
    rows = shuffled(len(labels), seed=seed, epoch=epoch)
    members = [rows[labels[rows] == label] for label in np.unique(labels[(labels >= 0) & (labels < classes)])]
    draws, over = divmod(len(labels), max(len(members), 1))
    drawn = [
        np.resize(rows_of_class, draws + ((number - epoch) % len(members) < over))
        for number, rows_of_class in enumerate(members)
    ]
    together = np.concatenate(drawn) if drawn else rows
    return together[np.argsort(_keys(len(together), seed, epoch, _MIX), kind="stable")]


def occurrences(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each element how often it has come before: 0 the first time."""
    by_row = np.argsort(rows, kind="stable")
    ordered = rows[by_row]
    result = np.empty(len(rows), np.int64)
    result[by_row] = np.arange(len(rows)) - np.searchsorted(ordered, ordered)
    return result


_SHUFFLE, _MIX = 0, 1
"""Blocks of random numbers."""


def _keys(length: int, seed: int, epoch: int, block: int) -> NDArray[np.uint64]:
    words = philox.words(seed, np.arange(length, dtype=np.uint64), epoch, Stage.ORDER << 16 | block)
    return (words[:, 0] << np.uint64(32)) | words[:, 1]


@dataclass(frozen=True)
class Share:
    """What one rank reads of one global batch.

    Attributes:
        rows: int64 [k]; positions in the source, k at least 1.
        real: How many of the rows, from the front, belong to this rank; the rest only keeps the rank busy while others
            finish the last batch of an evaluation, and counts nowhere.
    """

    rows: NDArray[np.int64]
    real: int


def steps_per_epoch(length: int, batch_size: int, *, drop_last: bool) -> int:
    """Number of global batches in `length` samples, the same for every rank.

    Raises:
        ValueError: There would be no batch.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    steps = length // batch_size if drop_last else -(-length // batch_size)
    if steps == 0:
        raise ValueError(f"batch size {batch_size} is larger than the {length} samples")
    return steps


def share(batch: NDArray[np.int64], *, rank: int, world: int, unit: int = 1) -> Share:
    """The rows of one rank in one global batch.

    The batch is cut into `world` consecutive parts that differ by at most one unit; the parts of all ranks together are
    the batch, without gap or repetition.

    Args:
        batch: int64 [n]; positions in the source, at least one.
        rank: This process, 0 to world - 1.
        world: Number of processes.
        unit: Samples that stay together: 2 for batches whose samples are mixed in pairs.
    """
    units = -(-len(batch) // unit)
    rows = batch[units * rank // world * unit : units * (rank + 1) // world * unit]
    return Share(rows, len(rows)) if len(rows) else Share(batch[:1], 0)
