"""Which sample goes into which shard: a pure function of its id, so that a changed source touches few shards."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b, sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

JPEG_BYTES_PER_PIXEL = 0.4
"""Rough size of a small JPEG at quality 90; decides only how many shards there are."""


def shard_count(samples: int, copies: int, size: int, encoding: str, target_bytes: int) -> int:
    """How many shards hold a split so that each is near the target size.

    Args:
        samples: Number of originals.
        copies: Augmented copies of each.
        size: Side of the images in px.
        encoding: `jpeg` or `raw`.
        target_bytes: Wanted size of a shard.
    """
    per_row = size * size * (3 if encoding == "raw" else JPEG_BYTES_PER_PIXEL) + 200
    return max(1, min(round(samples * (1 + copies) * per_row / target_bytes), max(samples, 1)))


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


@dataclass(frozen=True)
class ShardTask:
    """Everything that decides the bytes of one shard, apart from the contents of the files.

    Attributes:
        split: Name of the split.
        index: Number of the shard in its split.
        count: Shards of the split.
        copies: Augmented copies per sample in this split.
        files: Source files, relative to `root`, sorted by sample id.
        labels: Class index of each.
        ids: Sample id of each.
        root: Folder of the sources.
    """

    split: str
    index: int
    count: int
    copies: int
    files: tuple[str, ...]
    labels: tuple[int, ...]
    ids: tuple[int, ...]
    root: str


def fingerprint(
    recipe: dict[str, Any],
    made_with: dict[str, str],
    classes: Sequence[str],
    task: ShardTask,
    digests: Sequence[bytes],
) -> str:
    """Checksum of everything that decides the bytes of a shard, hexadecimal.

    Args:
        recipe: The cache's recipe, as in the manifest.
        made_with: Versions of everything that moves pixels: other versions may round differently.
        classes: Class names in index order.
        task: The shard.
        digests: Checksum of each file's contents.
    """
    words = [
        recipe,
        made_with,
        list(classes),
        [task.split, task.index, task.count, task.copies],
        [[file, label, digest.hex()] for file, label, digest in zip(task.files, task.labels, digests, strict=True)],
    ]
    return sha256(json.dumps(words, sort_keys=True).encode("utf-8")).hexdigest()


def content_digest(data: Buffer) -> bytes:
    """Checksum of a file's contents, 16 bytes."""
    return blake2b(data, digest_size=16).digest()
