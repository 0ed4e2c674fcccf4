"""A cache as a source of samples, memory-mapped."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
from isal.isal_zlib import crc32
from numpy.typing import NDArray

from augment_cache.format.manifest import Manifest, read_manifest
from augment_cache.format.shards import Row, Shard
from pipelines.engines.base import SMALL_BYTES, Stack
from pipelines.errors import CorruptSampleError, UsageError
from pipelines.sources import Lazy

_GOLDEN = 0x9E3779B97F4A7C15


class _RawRows(Stack):
    """Rows of raw pixels, see `pipelines.engines.base.Stack`."""

    in_memory = False

    def __init__(self, source: "CacheSource", rows: NDArray[np.int64]) -> None:
        self._source, self._rows = source, rows
        self.side = (source.image_size, source.image_size)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:  # type: ignore[override]
        return self._source.image(int(self._rows[index]))

    def copy_to(self, start: int, flip: NDArray[np.bool_], out: NDArray[np.uint8]) -> dict[int, str]:
        """See `pipelines.engines.base.Stack`."""
        errors = self._source.copy_raw(self._rows[start : start + len(flip)], flip, out)
        return {start + place: reason for place, reason in errors.items()}


class CacheSource:
    """See `pipelines.sources.Source`; rows are originals and copies.

    Args:
        folder: The cache.
        split: Which split.
        copies: Use only copies 0 … copies of each sample, at least 0; None uses all.
        check: Hold every row against its checksum when it is fetched.
        manifest: Of the cache, if it is at hand.

    Raises:
        UsageError: No cache, no such split, or a shard is missing.
    """

    checked = True

    def __init__(
        self,
        folder: Path,
        split: str,
        *,
        copies: int | None = None,
        check: bool = True,
        manifest: Manifest | None = None,
    ) -> None:
        if copies is not None and copies < 0:
            raise UsageError(f"copies must be at least 0, got {copies}")
        self.folder, self.split = folder, split
        self.manifest = manifest or read_manifest(folder)
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
        self._kept = keep
        self._shard_of = np.searchsorted(starts, keep, side="right") - 1
        self._row_of = keep - starts[self._shard_of]
        self.labels: NDArray[np.int64] = self._column("label", np.int64)[keep]
        self.copies: NDArray[np.int64] = copy[keep]
        self.sample_ids: NDArray[np.uint64] = self._column("sample_id", np.uint64)[keep]
        # Each copy of a sample gets its own online augmentation.
        self.ids: NDArray[np.uint64] = self.sample_ids ^ (self.copies.astype(np.uint64) * np.uint64(_GOLDEN))

    def _column(self, name: str, dtype: type) -> NDArray:  # type: ignore[type-arg]
        return np.concatenate([shard.column(name) for shard in self._shards]).astype(dtype)

    @property
    def image_size(self) -> int:
        """Side of the images in px."""
        return self.manifest.size

    def fetch(self, rows: NDArray[np.int64]) -> Sequence[NDArray[np.uint8]]:
        """Views of the images of some rows, held against their checksums when they are asked for."""
        if self.manifest.recipe["encoding"] == "raw":
            return _RawRows(self, rows)
        return Lazy(self.image, rows)

    def image(self, row: int) -> NDArray[np.uint8]:
        """The image of a row, a read-only view.

        Raises:
            CorruptSampleError: It does not match its checksum.
        """
        shard, local = self._shards[self._shard_of[row]], int(self._row_of[row])
        if self._check:
            shard.check(local)
        return shard.image(local)

    def copy_raw(self, rows: NDArray[np.int64], flip: NDArray[np.bool_], out: NDArray[np.uint8]) -> dict[int, str]:
        """Copy raw images, held against their checksums, with as little of Python's work for each as can be.

        Args:
            rows: int64 [k].
            flip: bool [k]; which are mirrored left to right.
            out: uint8 [k, size, size, 3], contiguous.

        Returns:
            Position in `rows` → reason of each image that is damaged.
        """
        errors: dict[int, str] = {}
        step = self.image_size**2 * 3
        shards, places = self._shard_of[rows].tolist(), self._row_of[rows].tolist()
        begun, wanted = (sums[rows].tolist() for sums in self._sums)
        small, target = step < SMALL_BYTES, memoryview(out.reshape(-1))
        for number, (shard, row, mirrored) in enumerate(zip(shards, places, flip.tolist(), strict=True)):
            image = self._raw[shard][row * step : (row + 1) * step]
            if self._check and crc32(image, begun[number]) != wanted[number]:
                errors[number] = str(self._shards[shard].damaged(row))
            elif mirrored:
                cv2.flip(self._shards[shard].image(row), 1, out[number])
            elif small:
                target[number * step : (number + 1) * step] = image
            else:  # lets other threads go on meanwhile
                out[number] = self._shards[shard].image(row)
        return errors

    @cached_property
    def _sums(self) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        """Of each row: its checksum as far as its numbers go, and the whole one."""
        begun, wanted = ([shard.begun for shard in self._shards], [shard.checksums for shard in self._shards])
        return np.concatenate(begun)[self._kept], np.concatenate(wanted)[self._kept]

    @cached_property
    def _raw(self) -> list[memoryview]:
        """The pixels of each shard."""
        return [memoryview(shard.pixels.reshape(-1)) for shard in self._shards]

    def record(self, row: int) -> Row:
        """Everything that is stored about a row."""
        return self._shards[self._shard_of[row]].row(int(self._row_of[row]))

    def names(self) -> list[str]:
        """Where each row came from: the path of its image or of its photo, with the annotation."""
        every = [shard.sources() for shard in self._shards]
        return [every[shard][row] for shard, row in zip(self._shard_of.tolist(), self._row_of.tolist(), strict=True)]

    def describe(self, row: int) -> str:
        """Shard, row in it and, if the row can still say it, source path."""
        where = f"{self._shards[self._shard_of[row]].path}, row {int(self._row_of[row])}"
        try:
            return f"{where} ({self.record(row).source})"
        except CorruptSampleError:
            return where
