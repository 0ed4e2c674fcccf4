"""What the manifest says about a shard: known to whoever wrote it, or read back from the file."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from augment_cache.format.manifest import ShardEntry, file_sha256
from augment_cache.format.shards import Shard


@dataclass(frozen=True)
class ShardFacts:
    """All of it.

    Attributes:
        entry: Its line in the manifest.
        samples: Number of originals.
        counts: Rows per class.
        rejected: Source, class and reason of each file that is left out.
    """

    entry: ShardEntry
    samples: int
    counts: Sequence[int]
    rejected: Sequence[Sequence[str]]


def read_facts(shard: Shard, name: str, classes: int) -> ShardFacts:
    """Read a shard's facts back from the file.

    Args:
        shard: The shard.
        name: Its path relative to the cache.
        classes: Number of classes.

    Raises:
        UsageError: It does not say what it holds.
    """
    metadata, path = shard.metadata, shard.path
    entry = ShardEntry(name, shard.rows, path.stat().st_size, file_sha256(path), metadata["fingerprint"])
    counts = np.bincount(shard.column("label"), minlength=classes).tolist()
    return ShardFacts(entry, int(metadata["samples"]), counts, metadata["rejected"])
