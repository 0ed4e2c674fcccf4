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
    words = philox.words(seed, np.arange(length, dtype=np.uint64), epoch, Stage.ORDER << 16)
    return np.argsort((words[:, 0] << np.uint64(32)) | words[:, 1], kind="stable").astype(np.int64)


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
    """Number of global batches in an epoch, the same for every rank.

    Raises:
        ValueError: There would be no batch.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    steps = length // batch_size if drop_last else -(-length // batch_size)
    if steps == 0:
        raise ValueError(f"batch size {batch_size} is larger than the {length} samples")
    return steps


def share(order: NDArray[np.int64], step: int, batch_size: int, *, rank: int, world: int) -> Share:
    """The rows of one rank in one step.

    The global batch is cut into `world` consecutive parts that differ by at most one sample; the parts of all ranks
    together are the batch, without gap or repetition.

    Args:
        order: int64 [n]; the epoch's order.
        step: 0 to steps_per_epoch - 1.
        batch_size: Size of the global batch.
        rank: This process, 0 to world - 1.
        world: Number of processes.
    """
    batch = order[step * batch_size : (step + 1) * batch_size]
    rows = batch[len(batch) * rank // world : len(batch) * (rank + 1) // world]
    return Share(rows, len(rows)) if len(rows) else Share(batch[:1], 0)
