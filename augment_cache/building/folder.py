"""The folder of a cache before and after its shards are built."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import numpy as np

from augment_cache.building.facts import ShardFacts, read_facts
from augment_cache.building.shard_plan import ShardTask, listing_checksum
from augment_cache.building.state import (
    SPLITS_NAME,
    identity_of,
    is_foreign_state,
    read_identity,
    read_splits,
    write_splits,
)
from augment_cache.building.worker import Claim, Recipe, ShardResult, fingerprint_now, read_state
from augment_cache.format.manifest import (
    BUILD_NAME,
    MANIFEST_NAME,
    REJECTED_NAME,
    SHARD_NAME,
    Manifest,
    SplitEntry,
    file_sha256,
    read_manifest,
)
from augment_cache.format.shards import Shard, read_metadata
from augment_cache.format.source import CacheSource
from pipelines.console.files import write_csv
from pipelines.console.output import say
from pipelines.errors import UsageError
from pipelines.sources import SPLITS

OUR_FILES = (MANIFEST_NAME, BUILD_NAME, SPLITS_NAME, REJECTED_NAME)


def refuse_strangers(out: Path) -> None:
    """Make sure that a folder holds nothing but what builds write.

    Raises:
        UsageError: Names something else that it holds.
    """
    if out.is_file():
        raise UsageError(f"{out} is a file; choose another --out")
    strangers = [entry.name for entry in sorted(out.iterdir()) if not _is_ours(entry)] if out.is_dir() else []
    if strangers:
        raise UsageError(f"{out} holds {strangers[0]!r}, which is no part of a cache; choose another --out")


def _is_ours(entry: Path) -> bool:
    try:
        if entry.is_dir():
            return entry.name in SPLITS and all(map(_is_shard, entry.iterdir()))
        if entry.name in OUR_FILES:
            return not is_foreign_state(entry)
    except FileNotFoundError:  # another part is tidying
        return True
    return entry.name.startswith(".")  # locks, files in the making, and what a file manager leaves


def _is_shard(file: Path) -> bool:
    """Whether a file of a split's folder is a shard, one in the making, or a hidden one that a file manager left."""
    return file.name.startswith(".") or SHARD_NAME.search(file.name) is not None


def claim(out: Path, recipe: Recipe, tasks: list[ShardTask], *, cut: bool, force: bool, part: bool) -> Claim:
    """Make sure that the folder is this cache, finished or not, or nothing yet, and write down which cache it is.

    Args:
        out: The folder.
        recipe: What is to be built. The same cache means: the same recipe and classes, and a sample in common.
        tasks: The shards.
        cut: The splits were cut by the build.
        force: Replace another cache.
        part: Other parts of the same build may be at work.

    Raises:
        UsageError: It holds another cache and `force` is False; the other parts use other library versions; or a name
            cannot be written into a shard.
    """
    _refuse_unwritable_names(recipe, tasks)
    wanted, found = identity_of(recipe), read_identity(out)
    other = found is not None and (found.difference(wanted) or _images_difference(out, tasks))
    if other and not force:
        raise UsageError(f"{out} holds another cache ({other}); choose another --out, or replace it with --force")
    if found is not None and found.made_with != wanted.made_with and not other:
        differences = _versions(found.made_with, wanted.made_with)
        if part and not force and not (out / MANIFEST_NAME).is_file():
            raise UsageError(f"{out} was begun with {differences}; give all parts the same environment, or use --force")
        say(f"{out} was made with {differences}: all shards are built anew, as pixels may differ")
        other = "versions"
    if other:
        _clear(out)
    known = known_shards(out, tasks)
    if not known:
        (out / MANIFEST_NAME).unlink(missing_ok=True)
    wanted.write(out)  # also where it is there: a damaged one must not get into the manifest's checksums
    if cut:
        there = read_splits(out)
        if there and there != {file: task.split for task in tasks for file in task.files}:
            (out / MANIFEST_NAME).unlink(missing_ok=True)  # it knows the checksum of the old splits.csv
        write_splits(out, tasks)
    else:
        (out / SPLITS_NAME).unlink(missing_ok=True)
    return Claim(known, read_state(out))


def _refuse_unwritable_names(recipe: Recipe, tasks: Sequence[ShardTask]) -> None:
    for name in (*recipe.classes, *(file for task in tasks for file in task.files)):
        try:
            name.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UsageError(f"the name {name!a} is not UTF-8, which shards require; rename it") from error


def _versions(there: dict[str, str], here: dict[str, str]) -> str:
    names = sorted(name for name in set(there) | set(here) if there.get(name) != here.get(name))
    listed = ", ".join(f"{name} {there.get(name, 'none')} (now {here.get(name, 'none')})" for name in names)
    return f"other libraries: {listed}" if there else "libraries that it no longer names"


def _images_difference(out: Path, tasks: Sequence[ShardTask]) -> str:
    wanted = np.concatenate([task.ids for task in tasks])
    try:
        splits = list(read_manifest(out).splits)
        found = [CacheSource(out, split, check=False).sample_ids for split in splits]
    except UsageError:  # unfinished or damaged: this build is what mends it
        known = read_splits(out)
        same = not known or any(file in known for task in tasks for file in task.files)
    else:
        same = any(np.isin(ids, wanted).any() for ids in found)
    return "" if same else "of other images"


def known_shards(out: Path, tasks: Sequence[ShardTask]) -> dict[str, str]:
    """The shards of a finished cache, path → SHA-256; none if it is not one that a build may leave as it is."""
    try:
        shards = read_manifest(out).shards
    except UsageError:
        return {}
    return {name: entry.sha256 for name, entry in shards.items()} if set(shards) == {t.file for t in tasks} else {}


def _clear(out: Path) -> None:
    """Remove a cache; the manifest first, so that what is left is never taken for a whole one.

    Whatever says which cache the shards belong to goes after them: without it they could be taken for anybody's.
    """
    (out / MANIFEST_NAME).unlink(missing_ok=True)
    _remove_shards(out, keep=set())
    for name in OUR_FILES:
        (out / name).unlink(missing_ok=True)


def _remove_shards(out: Path, keep: set[str]) -> None:
    for folder in (out / split for split in SPLITS):
        for file in sorted(folder.glob("shard-*.arrow")):
            if f"{folder.name}/{file.name}" not in keep:
                file.unlink()
        with suppress(OSError):
            folder.rmdir()


def missing_shards(out: Path, recipe: Recipe, tasks: Sequence[ShardTask], threads: int) -> list[str]:
    """Shards of other parts that nobody has built yet, or built from other files than there are now.

    Args:
        out: The folder.
        recipe: What is built.
        tasks: The other parts' shards.
        threads: That look at what the files hold, once all shards are there; 0 does not look.
    """
    listings = {task.file: listing_checksum(recipe.values, recipe.classes, task) for task in tasks}
    found = {task.file: read_metadata(out / task.file) or {} for task in tasks}
    missing = [name for name, listing in listings.items() if found[name].get("listing") != listing]
    if missing or not threads:
        return missing

    def is_made_from(task: ShardTask) -> bool:
        return bool(found[task.file].get("fingerprint") == fingerprint_now(task, listings[task.file]))

    with ThreadPoolExecutor(threads) as pool:
        return [task.file for task, same in zip(tasks, pool.map(is_made_from, tasks), strict=True) if not same]


def finish(
    out: Path,
    recipe: Recipe,
    tasks: Sequence[ShardTask],
    results: Sequence[ShardResult],
    *,
    allow_empty_classes: bool = False,
) -> Manifest:
    """Remove what earlier builds left, write `rejected.csv` and, last, the manifest.

    Args:
        out: The folder.
        recipe: What was built.
        tasks: All shards.
        results: Those that this process has built or reused.
        allow_empty_classes: Accept classes of which no image for training could be read.

    Raises:
        UsageError: A shard vanished meanwhile, or no image of a split, or of a class for training, could be read.
    """
    _remove_shards(out, keep={task.file for task in tasks})
    facts: dict[str, list[ShardFacts]] = {}
    known = {result.facts.entry.file: result.facts for result in results}
    for task in tasks:
        facts.setdefault(task.split, []).append(_facts(out, task.file, recipe, known.get(task.file)))
    rejected = write_rejected(out, {shard.entry.file: shard.rejected for each in facts.values() for shard in each})
    for split, shards in facts.items():
        if sum(shard.samples for shard in shards) == 0:
            (out / MANIFEST_NAME).unlink(missing_ok=True)
            raise UsageError(f"no image of the {split} split could be read; {out / REJECTED_NAME} says why")
    empty = [name for name, count in _split_entry(recipe.classes, facts["train"]).classes.items() if not count]
    if empty and not allow_empty_classes:  # a manifest that is still there is that of a cache which is whole
        raise UsageError(
            f"no image of class {empty[0]!r} for training could be read, {out / REJECTED_NAME} says why; mend them, "
            "or give --allow_empty_classes true"
        )
    marks = "".join(shard.entry.fingerprint for shards in facts.values() for shard in shards)
    beside = (name for name in (BUILD_NAME, REJECTED_NAME, SPLITS_NAME) if (out / name).is_file())
    manifest = Manifest(
        classes=recipe.classes,
        recipe=recipe.values,
        fingerprint=sha256(marks.encode()).hexdigest(),
        splits={split: _split_entry(recipe.classes, shards) for split, shards in facts.items()},
        rejected=rejected,
        made_with=recipe.made_with,
        files={name: file_sha256(out / name) for name in beside},
    )
    if not _is_written(out, manifest):
        manifest.write(out)
    return manifest


def write_rejected(out: Path, rejected: Mapping[str, Sequence[Sequence[str]]]) -> int:
    """Write `rejected.csv`.

    Args:
        out: Where to.
        rejected: Path of a shard relative to the cache → source, class and reason of each file that is left out, as
            its metadata has them.

    Returns:
        Number of rejected sources.
    """
    rows = [[name.partition("/")[0], *reject] for name, rejects in rejected.items() for reject in rejects]
    write_csv(out / REJECTED_NAME, ("split", "source", "class", "reason"), sorted(rows))
    return len(rows)


def _is_written(out: Path, manifest: Manifest) -> bool:
    try:
        return read_manifest(out) == manifest
    except UsageError:
        return False


def _facts(out: Path, name: str, recipe: Recipe, known: ShardFacts | None) -> ShardFacts:
    """The facts of a shard that is there."""
    path = out / name
    try:
        if known is None:
            return read_facts(Shard(path, recipe.encoding, recipe.size), name, len(recipe.classes))
        if path.is_file() and path.stat().st_size == known.entry.bytes:
            return known
        reason = None
    except UsageError as error:
        reason = error
    raise UsageError(f"{path} vanished or was damaged while the cache was being built; run the build again") from reason


def _split_entry(classes: tuple[str, ...], shards: list[ShardFacts]) -> SplitEntry:
    counts = np.sum([shard.counts for shard in shards], axis=0)
    return SplitEntry(
        samples=sum(shard.samples for shard in shards),
        rows=sum(shard.entry.rows for shard in shards),
        classes={name: int(counts[index]) for index, name in enumerate(classes)},
        shards=tuple(shard.entry for shard in shards),
    )
