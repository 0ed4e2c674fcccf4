"""The columns of a shard that can be counted, read without touching the images."""

import mmap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from augment_cache.format.shards import UNREADABLE
from pipelines.errors import UsageError

COLUMNS = ("copy", "label", "image", "op", "magnitude")


class Columns(NamedTuple):
    """What is counted of a shard. Applied ops of all rows stand one after the other."""

    labels: NDArray[np.int64]
    """[rows], class index."""
    copies: NDArray[np.int64]
    """[rows], 0 for an original."""
    image_bytes: NDArray[np.int64]
    """[rows], size of the stored image in bytes."""
    op_names: tuple[str, ...]
    """Names of the ops that occur."""
    op_codes: NDArray[np.int64]
    """[applied ops], index into `op_names`."""
    op_rows: NDArray[np.int64]
    """[applied ops], the row that got it; ascending."""
    magnitudes: NDArray[np.float64]
    """[applied ops], signed value in the op's unit."""


def read_columns(path: Path, classes: int) -> Columns:
    """Read the columns of a shard.

    Args:
        path: The shard.
        classes: Number of classes that a label can name.

    Raises:
        UsageError: The file is missing, or no whole shard.
    """
    try:
        batch = _open(path)
        columns = {name: batch.column(name) for name in COLUMNS}
        for name, column in columns.items():
            # A flipped bit in an offset would otherwise be followed to wherever it leads.
            column.validate(full=True)
            if column.null_count:
                raise ValueError(f"column {name} has gaps")
        with np.errstate(invalid="ignore"):  # numbers that are none are found by the check
            result = _unpacked(columns)
        _check(result, classes)
    except UNREADABLE as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{path} is missing or damaged ({reason}); {cure(path.parent.parent)}") from error
    return result


def cure(cache: Path) -> str:
    """What to do about a damaged cache."""
    return f"mend it with python -m augment_cache.verify --cache {cache} --repair --data FOLDER"


def _open(path: Path) -> pa.RecordBatch:
    """The only record batch of a shard.

    Not through `pyarrow.memory_map`: it asks the system for all pages of what it opens, so the images of the whole
    cache would be read from the disk. A plain buffer is read where it is looked at.
    """
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(mapped)))
    if reader.num_record_batches != 1:
        raise ValueError(f"{reader.num_record_batches} record batches instead of one")
    return reader.get_batch(0)


def _unpacked(columns: dict[str, Any]) -> Columns:
    ops, magnitudes = columns["op"], columns["magnitude"]
    if not pc.list_value_length(ops).equals(pc.list_value_length(magnitudes)):
        raise ValueError("not every op has a magnitude")
    names = pc.list_flatten(ops).dictionary_encode()
    return Columns(
        labels=_numbers(columns["label"]).astype(np.int64),
        copies=_numbers(columns["copy"]).astype(np.int64),
        image_bytes=_numbers(pc.binary_length(columns["image"])).astype(np.int64),
        op_names=tuple(names.dictionary.to_pylist()),
        op_codes=_numbers(names.indices).astype(np.int64),
        op_rows=_numbers(pc.list_parent_indices(ops)).astype(np.int64),
        magnitudes=_numbers(pc.list_flatten(magnitudes)).astype(np.float64),
    )


def _numbers(column: pa.Array) -> NDArray[Any]:
    """A column of numbers without gaps. Not its own to_numpy: that imports pandas, which takes longer than all else."""
    kind, data = np.dtype(column.type.to_pandas_dtype()), column.buffers()[1]
    return np.frombuffer(data, kind, len(column), column.offset * kind.itemsize) if len(column) else np.zeros(0, kind)


def _check(columns: Columns, classes: int) -> None:
    labels, copies = columns.labels, columns.copies
    if len(labels) and not (labels.min() >= 0 and labels.max() < classes and copies.min() >= 0):
        raise ValueError("a label or a copy number that cannot be")
    if not np.isfinite(columns.magnitudes).all():
        raise ValueError("a magnitude that is no number")
