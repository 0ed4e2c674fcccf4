"""Copies of a cache on this machine's own disk, found by what the cache holds: whatever is read is the same."""

import os
from pathlib import Path

from augment_cache.format.manifest import MANIFEST_NAME, file_sha256, read_manifest
from pipelines.errors import UsageError

SCRATCH = "TACOPRESS_SCRATCH"
"""Environment variable: the folder that holds them, on a disk that is fast to read; without it none is looked for."""
PREFIX = "tacopress-"


def staged_folder(cache: Path, scratch: Path) -> Path:
    """Where the copy of a cache lies, or would lie: named by the manifest, in which all checksums are."""
    return scratch / f"{PREFIX}{file_sha256(cache / MANIFEST_NAME)[:32]}"


def is_whole(copy: Path) -> bool:
    """Whether a copy is ours, and still has all its shards: what tidies scratch disks deletes file by file."""
    try:
        shards = read_manifest(copy).shards
        facts = {copy / name: (copy / name).stat() for name in shards}
    except (OSError, UsageError):
        return False
    ours = all(fact.st_uid == os.getuid() for fact in facts.values())
    return ours and all(facts[copy / name].st_size == shard.bytes for name, shard in shards.items())


def nearest(cache: Path) -> Path:
    """The copy of a cache on this machine's own disk, if there is a whole one of our own; else the cache itself."""
    scratch = os.environ.get(SCRATCH, "")
    if not scratch:
        return cache
    copy = staged_folder(cache, Path(scratch))
    return copy if is_whole(copy) else cache
