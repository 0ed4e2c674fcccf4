"""Strings and lists from Arrow's buffers, read without trusting their offsets.

pyarrow trusts the offsets of a file, and a damaged one would make it read anywhere. Here a range that leaves its buffer
is an IndexError.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa


def range_of(column: pa.Array, row: int) -> tuple[int, int]:
    """Where a row of a string or list column starts and ends among the column's values."""
    if not 0 <= row < len(column):
        raise IndexError
    start, stop = np.frombuffer(column.buffers()[1], np.int32, 2, 4 * row).tolist()
    if not 0 <= start <= stop:
        raise IndexError
    return start, stop


def slices(column: pa.Array, rows: Sequence[int]) -> list[str]:
    """Some texts of a string column."""
    texts = []
    for row in rows:
        start, stop = range_of(column, row)
        data = column.buffers()[2]
        if stop > (data.size if data is not None else 0):
            raise IndexError
        texts.append(bytes(memoryview(data)[start:stop]).decode("utf-8", "surrogatepass") if data is not None else "")
    return texts
