"""Which sample goes into which shard: a pure function of its id, so that a changed source touches few shards."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

from augment_cache.format.manifest import shard_file

JPEG_BYTES_PER_PIXEL = 0.4
"""Rough size of a small JPEG at quality 90; decides only how many shards there are."""
FEW_SHARDS, FEW_ROWS = 16, 256


def shard_count(rows: int, size: int, encoding: str, target_bytes: int) -> int:
    """How many shards hold a split so that each is near the target size: a power of two.

    So the number changes only when a split has grown by half or more, and adding a few files touches a few shards.

    Args:
        rows: Originals and copies.
        size: Side of the images in px.
        encoding: `jpeg` or `raw`.
        target_bytes: Wanted size of a shard; the result is between 0.75 and 1.5 times that, but smaller where there
            would be less than 16 shards of at least 256 rows: several processes want something to do.
    """
    per_row = size * size * (3 if encoding == "raw" else JPEG_BYTES_PER_PIXEL) + 200
    wanted = max(rows * per_row / target_bytes, min(FEW_SHARDS, rows / FEW_ROWS))
    count = 1
    while wanted > 1.5 * count and count < rows:
        count *= 2
    return count


def assign(ids: NDArray[np.uint64], count: int) -> list[NDArray[np.int64]]:
    """Cut the range of ids into equal parts; a shard holds its part, sorted by id.

    Args:
        ids: uint64 [n], all different.
        count: Number of shards.

    Returns:
        For each shard the positions of its samples, int64.

    Raises:
        ValueError: Two samples have the same id.
    """
    order = np.argsort(ids, kind="stable").astype(np.int64)
    ordered = ids[order]
    if (ordered[1:] == ordered[:-1]).any():
        raise ValueError("two samples have the same id")
    shard = ((ordered >> np.uint64(32)) * np.uint64(count)) >> np.uint64(32)
    edges = np.searchsorted(shard, np.arange(count + 1, dtype=np.uint64))
    return [order[edges[index] : edges[index + 1]] for index in range(count)]


@dataclass(frozen=True, eq=False)
class ShardTask:
    """Everything that decides the bytes of one shard, apart from the recipe and the contents of the files.

    Attributes:
        split: Name of the split.
        index: Number of the shard in its split.
        count: Shards of the split.
        files: Source files, relative to `root`, sorted by sample id.
        labels: int64 [n]; class index of each.
        ids: uint64 [n]; sample id of each.
        copies: int16 [n]; augmented copies of each.
        root: Folder of the sources.
    """

    split: str
    index: int
    count: int
    files: tuple[str, ...]
    labels: NDArray[np.int64]
    ids: NDArray[np.uint64]
    copies: NDArray[np.int16]
    root: str

    @property
    def file(self) -> str:
        """Path of the shard relative to the cache."""
        return shard_file(self.split, self.index, self.count)


def listing_checksum(recipe: dict[str, Any], classes: Sequence[str], task: ShardTask) -> str:
    """Checksum of everything that decides the bytes of a shard but the contents of the files, hexadecimal.

    Args:
        recipe: The cache's recipe, as in the manifest.
        classes: Class names in index order.
        task: The shard.
    """
    rows = [list(row) for row in zip(task.files, task.labels.tolist(), task.copies.tolist(), strict=True)]
    words = [recipe, list(classes), [task.split, task.index, task.count], rows]
    return sha256(json.dumps(words, sort_keys=True).encode("utf-8")).hexdigest()


def fingerprint(listing: str, digests: Sequence[bytes]) -> str:
    """Checksum of a shard's listing and of the contents of its files, hexadecimal.

    Args:
        listing: Result of `listing_checksum`.
        digests: Checksum of each file's contents.
    """
    return sha256(listing.encode() + b"".join(digests)).hexdigest()


def content_digest(data: Buffer) -> bytes:
    """Checksum of a file's contents, 32 bytes."""
    return sha256(data).digest()
