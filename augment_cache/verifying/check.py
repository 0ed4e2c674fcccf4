"""Hold a cache against its checksums: the manifest's own, those of the files, and those of the rows."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from augment_cache.building.state import read_identity
from augment_cache.format.manifest import (
    MANIFEST_NAME,
    SHARD_NAME,
    Manifest,
    ShardEntry,
    file_sha256,
    is_foreign,
    read_manifest,
)
from augment_cache.format.shards import Shard
from pipelines.console.cores import usable_cores
from pipelines.errors import CorruptSampleError, UsageError
from pipelines.sources import SPLITS


@dataclass(frozen=True, kw_only=True)
class Damage:
    """Something that is not as it was written.

    Attributes:
        file: Path relative to the cache.
        what: In words.
        row: The damaged row of a shard; None where the whole file is meant.
        sample_id: Of that row, hexadecimal; as it stands there, so it may be what is damaged.
        source: Of that row; None if it cannot be read.
    """

    file: str
    what: str
    row: int | None = None
    sample_id: str | None = None
    source: str | None = None


@dataclass(frozen=True)
class Findings:
    """What a check found.

    Attributes:
        manifest: None if it is missing or damaged.
        damage: All of it, in the order of the files.
        shards: Number of shards that were read.
        rows: Number of rows in them.
        bytes: Their size.
    """

    manifest: Manifest | None
    damage: list[Damage]
    shards: int
    rows: int
    bytes: int


def check_cache(cache: Path, advance: Callable[[int], None]) -> Findings:
    """Read every byte of a cache.

    Args:
        cache: The folder.
        advance: Told the number of shards that were read.

    Raises:
        UsageError: The folder is no cache, or one that was never finished.
    """
    try:
        manifest = read_manifest(cache)
    except UsageError as error:
        path = cache / MANIFEST_NAME
        if not path.is_file() or (read_identity(cache) is None and is_foreign(path)):
            raise
        return Findings(None, [Damage(file=MANIFEST_NAME, what=str(error))], 0, 0, 0)
    damage = [*_of_manifest(cache), *_beside(cache, manifest)]
    entries = list(manifest.shards.values())
    with ThreadPoolExecutor(usable_cores()) as pool:
        for entry, whole in zip(entries, pool.map(lambda entry: _is_as_written(cache, entry), entries), strict=True):
            damage += _of_shard(cache, manifest, entry, whole=whole)
            advance(1)
    damage += _unlisted(cache, manifest)
    rows, size = sum(entry.rows for entry in entries), sum(entry.bytes for entry in entries)
    return Findings(manifest, damage, len(entries), rows, size)


def _of_manifest(cache: Path) -> Iterator[Damage]:
    """Its checksum is one of values, and two texts may have the same: white space, the last digit of a fraction."""
    data = (cache / MANIFEST_NAME).read_bytes()
    if data != (json.dumps(json.loads(data), indent=1, ensure_ascii=False) + "\n").encode():
        yield Damage(file=MANIFEST_NAME, what="says what it said, in other bytes")


def _beside(cache: Path, manifest: Manifest) -> Iterator[Damage]:
    for name, digest in manifest.files.items():
        if not (cache / name).is_file():
            yield Damage(file=name, what="missing")
        elif file_sha256(cache / name) != digest:
            yield Damage(file=name, what="changed since it was written")


def _is_as_written(cache: Path, entry: ShardEntry) -> bool:
    path = cache / entry.file
    return path.is_file() and path.stat().st_size == entry.bytes and file_sha256(path) == entry.sha256


def _of_shard(cache: Path, manifest: Manifest, entry: ShardEntry, *, whole: bool) -> list[Damage]:
    """The damage of one shard; rows are read even where the file is as it was written."""
    path = cache / entry.file
    if not path.is_file():
        return [Damage(file=entry.file, what=f"missing, with rows 0 to {entry.rows - 1}")]
    try:
        shard = Shard(path, manifest.recipe["encoding"], manifest.size)
        if shard.rows != entry.rows:
            raise UsageError(f"{shard.rows} rows instead of {entry.rows}")
        rows = [_of_row(entry.file, shard, row) for row in shard.damage()]
    except Exception:  # pyarrow answers a damaged file with whatever comes to its mind, even SystemError
        return [Damage(file=entry.file, what=f"cannot be opened; rows 0 to {entry.rows - 1} are out of reach")]
    if not rows and not whole:
        return [Damage(file=entry.file, what="changed outside of its rows (schema, footer or padding); no row is hurt")]
    return rows


def _of_row(file: str, shard: Shard, row: int) -> Damage:
    try:
        source = shard.row(row).source
    except CorruptSampleError:
        source = None
    sample = f"{int(shard.column('sample_id')[row]):016x}"
    return Damage(file=file, what="does not match its checksums", row=row, sample_id=sample, source=source)


def _unlisted(cache: Path, manifest: Manifest) -> list[Damage]:
    files = [path for split in SPLITS for path in sorted((cache / split).glob("*")) if path.is_file()]
    # What a file manager hides there does no harm; a shard in the making does no good.
    found = [f"{path.parent.name}/{path.name}" for path in files if path.name[0] != "." or SHARD_NAME.search(path.name)]
    return [Damage(file=name, what="not in the manifest") for name in found if name not in manifest.shards]
