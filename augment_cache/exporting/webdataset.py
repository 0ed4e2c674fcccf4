"""Numbered tar files as WebDataset reads them: the same rows give the same bytes."""

import json
import tarfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np

from augment_cache.exporting.names import key
from augment_cache.exporting.rows import CheckedRows, Item, in_order
from pipelines.order import shuffled

_END = bytes(2 * tarfile.BLOCKSIZE)


def write_tars(
    folder: Path,
    splits: Sequence[CheckedRows],
    pool: ThreadPoolExecutor,
    threads: int,
    advance: Callable[[], None],
    *,
    seed: int | None,
    target_bytes: int,
) -> dict[str, dict[str, int]]:
    """Write every row as three members of `SPLIT-000000.tar` …: `KEY.jpg` (or `.png`), `KEY.cls` and `KEY.json`.

    Args:
        folder: Where to.
        splits: What to write.
        pool: Reads and encodes.
        threads: How many threads it has.
        advance: Called after each row.
        seed: Of the order of the rows, since WebDataset itself shuffles no further than its buffer; None leaves them as
            they are stored, every sample beside its copies.
        target_bytes: What a tar does not grow beyond, unless a single row does.

    Returns:
        Split → `rows`, `tars`, `bytes` of the tars.
    """
    counts = {}
    for rows in splits:
        order = np.arange(len(rows)) if seed is None else shuffled(len(rows), seed=seed, epoch=0)
        with TarShards(folder, rows.split, target_bytes) as tars:
            for block in in_order(pool, threads, partial(_row_block, rows), order.tolist(), rows.part):
                tars.add(block)
                advance()
        counts[rows.split] = {"rows": len(rows), "tars": tars.count, "bytes": tars.bytes}
    return counts


def _row_block(rows: CheckedRows, position: int) -> bytes:
    item = rows.read(position)
    name = key(item.record.sample_id, item.record.copy)
    return (
        tar_member(f"{name}.{rows.suffix}", item.file())
        + tar_member(f"{name}.cls", str(item.record.label).encode("ascii"))
        + tar_member(f"{name}.json", described(item))
    )


def described(item: Item) -> bytes:
    """The JSON member of a row.

    Returns:
        UTF-8 of an object with `class` (name), `label` (index), `source`, `sample_id` (16 hexadecimal digits), `copy`,
        and one entry for each op in `op`, `magnitude` and `centre` ([x, y]).
    """
    record = item.record
    value = {
        "class": item.class_name,
        "label": record.label,
        "source": record.source,
        "sample_id": f"{record.sample_id:016x}",
        "copy": record.copy,
        "op": record.op,
        "magnitude": record.magnitude,
        "centre": list(zip(record.centre[::2], record.centre[1::2], strict=True)),
    }
    # What UTF-8 cannot write comes out as \udc80 and the like, which is how JSON spells it.
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace")


def tar_member(name: str, data: bytes) -> bytes:
    """Header, contents and padding of one file: USTAR, mode 0644, no owner, no time; a multiple of 512 bytes.

    Args:
        name: At most 100 ASCII characters.
        data: The contents.
    """
    info = tarfile.TarInfo(name)  # owner and time are 0 already
    info.size, info.mode = len(data), 0o644
    return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict") + data + bytes(-len(data) % tarfile.BLOCKSIZE)


class TarShards:
    """Tar files that follow each other when one is full.

    Args:
        folder: Where they are made.
        prefix: Before the number in their names.
        target_bytes: Size that a tar does not exceed, unless what is added at once does.

    Attributes:
        count: Tars so far.
        bytes: Size of all that are finished.
    """

    def __init__(self, folder: Path, prefix: str, target_bytes: int) -> None:
        self._folder, self._prefix, self._target = folder, prefix, target_bytes
        self._file: IO[bytes] | None = None
        self._written = 0
        self.count = self.bytes = 0

    def add(self, block: bytes) -> None:
        """Append whole members; they stay together in one tar."""
        if self._file is not None and self._written + len(block) + len(_END) > self._target:
            self._finish()
        if self._file is None:
            self._file = (self._folder / f"{self._prefix}-{self.count:06d}.tar").open("xb")
            self.count += 1
        self._file.write(block)
        self._written += len(block)

    def _finish(self) -> None:
        if self._file is None:
            return
        with self._file as file:
            file.write(_END)
        self.bytes += self._written + len(_END)
        self._file, self._written = None, 0

    def __enter__(self) -> "TarShards":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()
        elif self._file is not None:
            self._file.close()
