"""The rows of a cache on their way out: each held against its checksums, many at a time, always in order."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from augment_cache.exporting.names import class_fault, source_fault
from augment_cache.format.manifest import Manifest
from augment_cache.format.shards import Row, Shard
from pipelines.errors import CorruptSampleError, UsageError
from pipelines.sources import SPLITS

Result = TypeVar("Result")

PNG_LEVEL = 3
"""Level 1 takes 80 % of the time for 4 to 7 % more bytes; level 6 twice the time for 5 % less."""
PART_BYTES, PART_ROWS = 1 << 22, 64
"""What one thread takes at a time: enough to be worth handing over, little enough to keep memory flat."""


@dataclass(frozen=True)
class Item:
    """One row, checked.

    Attributes:
        record: Everything that is stored about it.
        class_name: Name of its class.
        image: uint8 [bytes], a JPEG file; or uint8 [size, size, 3], RGB. A read-only view.
    """

    record: Row
    class_name: str
    image: NDArray[np.uint8]

    def file(self) -> bytes:
        """The image as a file: a JPEG byte for byte as it is stored, raw pixels as PNG, without loss."""
        if self.image.ndim == 1:
            return self.image.tobytes()
        _, png = cv2.imencode(
            ".png", cv2.cvtColor(self.image, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_PNG_COMPRESSION, PNG_LEVEL)
        )
        return bytes(png)


class CheckedRows:
    """The rows of one split, in the order in which they are stored.

    Args:
        cache: The cache.
        manifest: Its manifest.
        split: Which split.
        copies: Only copies 0 … copies of each sample; None for all.

    Raises:
        UsageError: A shard is missing or none, or the rows are not those that the manifest speaks of.
    """

    def __init__(self, cache: Path, manifest: Manifest, split: str, copies: int | None) -> None:
        self._cache, self._classes, self.split = cache, manifest.classes, split
        entry = manifest.splits[split]
        encoding, self._size = manifest.recipe["encoding"], manifest.size
        self.suffix = "png" if encoding == "raw" else "jpg"
        self._shards = [Shard(cache / shard.file, encoding, self._size) for shard in entry.shards]
        rows = [shard.rows for shard in self._shards]
        if rows != [shard.rows for shard in entry.shards]:
            raise UsageError(f"{cache}: the {split} split has not the rows that its manifest lists; {self._cure}")
        copy = np.concatenate([shard.column("copy") for shard in self._shards])
        ids = np.concatenate([shard.column("sample_id") for shard in self._shards])
        # A damaged copy number could hide an original from the choice below, and nobody would miss it.
        if copies is not None and np.count_nonzero(copy == 0) != entry.samples:
            raise UsageError(f"{cache}: the {split} split has not the {entry.samples} originals of old; {self._cure}")
        self._refuse_twins(ids, copy)
        keep = np.arange(len(copy)) if copies is None else np.flatnonzero(copy <= copies)
        starts = np.concatenate(([0], np.cumsum(rows)))
        self._shard_of = np.searchsorted(starts, keep, side="right") - 1
        self._row_of = keep - starts[self._shard_of]

    @property
    def _cure(self) -> str:
        return f"mend it with python -m augment_cache.verify --cache {self._cache} --repair"

    def _refuse_twins(self, ids: NDArray[np.uint64], copy: NDArray[np.int16]) -> None:
        order = np.lexsort((copy, ids))
        same = (ids[order][1:] == ids[order][:-1]) & (copy[order][1:] == copy[order][:-1])
        if same.any():
            twin = order[int(np.argmax(same))]
            raise UsageError(
                f"{self._cache}: the {self.split} split holds sample {int(ids[twin]):016x}, copy {int(copy[twin])}, "
                f"twice; {self._cure}"
            )

    def __len__(self) -> int:
        return len(self._row_of)

    @property
    def part(self) -> int:
        """How many rows a thread should take at a time."""
        return max(1, min(PART_ROWS, PART_BYTES // (self._size * self._size * 3)))

    def read(self, position: int) -> Item:
        """A row, if it is what was once written.

        Raises:
            CorruptSampleError: It does not match its checksums.
            UsageError: Its source or its label is one that no build writes.
        """
        shard, row = self._shards[self._shard_of[position]], int(self._row_of[position])
        where = f"{shard.path}, row {row}"
        try:
            shard.check(row)
            shard.check_provenance(row)
            record = shard.row(row)
        # Damaged lengths and offsets come out of Arrow as errors of many kinds.
        except (CorruptSampleError, ValueError, TypeError, IndexError, OverflowError) as error:
            raise CorruptSampleError(f"{where}: damaged since it was written; {self._cure}") from error
        fault = source_fault(record.source)
        if fault:
            raise UsageError(f"{where}: source {record.source!r} {fault}")
        if not 0 <= record.label < len(self._classes):
            raise UsageError(f"{where}: label {record.label} is none of {len(self._classes)} classes; {self._cure}")
        return Item(record, self._classes[record.label], shard.image(row))


def open_rows(cache: Path, manifest: Manifest, split: str, copies: int | None) -> list[CheckedRows]:
    """Open the splits that are wanted.

    Args:
        cache: The cache.
        manifest: Its manifest.
        split: Name of a split, or `all`.
        copies: See `CheckedRows`.

    Raises:
        UsageError: No such split; a split or a class that cannot be a folder.
    """
    strangers = sorted(set(manifest.splits) - set(SPLITS))
    if strangers:
        raise UsageError(f"{cache}: split {strangers[0]!r} is none of {', '.join(SPLITS)}; do not trust this cache")
    if split != "all" and split not in manifest.splits:
        raise UsageError(f"{cache} has no split {split!r}; it has {', '.join(manifest.splits)}")
    for name in manifest.classes:
        fault = class_fault(name)
        if fault:
            raise UsageError(f"{cache}: class {name!r} {fault}")
    if len(set(manifest.classes)) < len(manifest.classes):
        raise UsageError(f"{cache}: two classes have the same name; do not trust this cache")
    return [CheckedRows(cache, manifest, name, copies) for name in manifest.splits if split in ("all", name)]


@contextmanager
def worker_threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that are all at rest when the block is left, also by an error: what waits is dropped."""
    pool = ThreadPoolExecutor(count, thread_name_prefix="export")
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def in_order(
    pool: ThreadPoolExecutor, threads: int, work: Callable[[int], Result], positions: Sequence[int], part: int
) -> Iterator[Result]:
    """`map` in threads that never runs far ahead of who takes the results.

    Args:
        pool: Does the work.
        threads: How many threads it has.
        work: Called with each position.
        positions: What to work through.
        part: How many positions a thread takes at a time.

    Yields:
        The results in the order of the positions; the first error in this order is the one that is raised.
    """
    waiting: deque[Future[list[Result]]] = deque()
    for start in range(0, len(positions), part):
        waiting.append(pool.submit(partial(_all_of, work, positions[start : start + part])))
        if len(waiting) > 2 * threads:
            yield from waiting.popleft().result()
    while waiting:
        yield from waiting.popleft().result()


def _all_of(work: Callable[[int], Result], positions: Sequence[int]) -> list[Result]:
    return [work(position) for position in positions]
