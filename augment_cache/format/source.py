"""A cache as a source of samples, memory-mapped."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from augment_cache.format.manifest import Manifest, read_manifest
from augment_cache.format.shards import Row, Shard
from pipelines.errors import UsageError

_GOLDEN = 0x9E3779B97F4A7C15


class CacheSource:
    """See `pipelines.sources.Source`; rows are originals and copies.

    Args:
        folder: The cache.
        split: Which split.
        copies: Use only copies 0 … copies of each sample, at least 0; None uses all.
        check: Hold every row against its checksum when it is fetched.

    Raises:
        UsageError: No cache, no such split, or a shard is missing.
    """

    checked = True

    def __init__(self, folder: Path, split: str, *, copies: int | None = None, check: bool = True) -> None:
        if copies is not None and copies < 0:
            raise UsageError(f"copies must be at least 0, got {copies}")
        self.folder, self.split = folder, split
        self.manifest: Manifest = read_manifest(folder)
        if split not in self.manifest.splits:
            raise UsageError(f"{folder} has no split {split!r}; it has {', '.join(self.manifest.splits)}")
        self.classes = self.manifest.classes
        encoding, size = self.manifest.recipe["encoding"], self.manifest.size
        entries = self.manifest.splits[split].shards
        self._shards = [Shard(folder / entry.file, encoding, size) for entry in entries]
        for shard, entry in zip(self._shards, entries, strict=True):
            if shard.rows != entry.rows:
                raise UsageError(f"{shard.path} has {shard.rows} rows, not {entry.rows}; build the cache again")
        self.fingerprint = f"{self.manifest.fingerprint}/{split}/{copies}"
        self._check = check
        copy = self._column("copy", np.int64)
        keep = np.arange(len(copy)) if copies is None else np.flatnonzero(copy <= copies)
        starts = np.concatenate(([0], np.cumsum([shard.rows for shard in self._shards])))
        self._shard_of = np.searchsorted(starts, keep, side="right") - 1
        self._row_of = keep - starts[self._shard_of]
        self.labels: NDArray[np.int64] = self._column("label", np.int64)[keep]
        self.copies: NDArray[np.int64] = copy[keep]
        self.sample_ids: NDArray[np.uint64] = self._column("sample_id", np.uint64)[keep]
        # Each copy of a sample gets its own online augmentation.
        self.ids: NDArray[np.uint64] = self.sample_ids ^ (self.copies.astype(np.uint64) * np.uint64(_GOLDEN))

    def _column(self, name: str, dtype: type) -> NDArray:  # type: ignore[type-arg]
        return np.concatenate([shard.column(name) for shard in self._shards]).astype(dtype)

    def fetch(self, rows: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
        """Views of the images of some rows.

        Raises:
            CorruptSampleError: A row does not match its checksum.
        """
        images = []
        for row in rows.tolist():
            shard, local = self._shards[self._shard_of[row]], int(self._row_of[row])
            if self._check:
                shard.check(local)
            images.append(shard.image(local))
        return images

    def record(self, row: int) -> Row:
        """Everything that is stored about a row."""
        return self._shards[self._shard_of[row]].row(int(self._row_of[row]))

    def describe(self, row: int) -> str:
        """Shard, row in it, and source path."""
        return f"{self._shards[self._shard_of[row]].path}, row {int(self._row_of[row])} ({self.record(row).source})"
