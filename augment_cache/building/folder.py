"""The folder of a cache before and after its shards are built."""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from augment_cache.building.shard_plan import ShardTask
from augment_cache.building.worker import Recipe, ShardResult
from augment_cache.format.manifest import (
    MANIFEST_NAME,
    SHARD_NAME,
    Manifest,
    ShardEntry,
    SplitEntry,
    file_sha256,
    is_foreign,
    read_manifest,
)
from augment_cache.format.shards import Shard, read_metadata
from augment_cache.format.source import CacheSource
from pipelines.console.files import write_csv
from pipelines.errors import UsageError
from pipelines.sources import SPLITS

REJECTED_NAME = "rejected.csv"


def claim(out: Path, recipe: Recipe, tasks: Sequence[ShardTask], *, overwrite: bool) -> None:
    """Make sure that the folder is this cache, finished or not, or nothing yet; from now on it counts as unfinished.

    The same cache means: the same recipe and classes, and at least one sample in common.

    Raises:
        UsageError: It holds something else and `overwrite` is False.
    """
    if out.is_file():
        raise UsageError(f"{out} is a file; choose another --out")
    strangers = [entry.name for entry in sorted(out.iterdir()) if not _is_ours(entry)] if out.is_dir() else []
    if strangers:
        raise UsageError(f"{out} holds {strangers[0]!r}, which is no part of a cache; choose another --out")
    difference = "" if overwrite else _difference(out, recipe, tasks)
    if difference:
        raise UsageError(f"{out} holds another cache ({difference}); choose another --out or give --overwrite true")
    (out / MANIFEST_NAME).unlink(missing_ok=True)


def _is_ours(entry: Path) -> bool:
    if entry.is_dir():
        return entry.name in SPLITS and all(SHARD_NAME.search(file.name) for file in entry.iterdir())
    if entry.name == MANIFEST_NAME:
        return not is_foreign(entry)
    return entry.name == REJECTED_NAME or _is_partial(entry)


def _is_partial(entry: Path) -> bool:
    """What a killed build was writing beside its name."""
    return entry.name.startswith(tuple(f".{name}.partial-" for name in (MANIFEST_NAME, REJECTED_NAME)))


def _difference(out: Path, recipe: Recipe, tasks: Sequence[ShardTask]) -> str:
    """The first thing in which the cache in a folder, finished or not, differs from the one asked for; or ""."""
    if (out / MANIFEST_NAME).is_file():
        manifest = read_manifest(out)
        return _recipe_difference(manifest.recipe, manifest.classes, recipe) or _images_difference(out, manifest, tasks)
    for path in sorted(out.glob("*/shard-*.arrow")):
        metadata = read_metadata(path)
        if metadata is not None and "recipe" in metadata:
            return _recipe_difference(metadata["recipe"], tuple(metadata["classes"]), recipe)
    return ""


def _recipe_difference(there: dict[str, Any], classes: tuple[str, ...], recipe: Recipe) -> str:
    for key in sorted(set(there) | set(recipe.values)):
        old, new = there.get(key), recipe.values.get(key)
        if old != new:
            return "another policy" if key == "policy" else f"{key} {old} there, {new} asked for"
    return "" if classes == recipe.classes else f"classes {', '.join(classes)}"


def _images_difference(out: Path, manifest: Manifest, tasks: Sequence[ShardTask]) -> str:
    wanted = {sample for task in tasks for sample in task.ids}
    try:
        found = [set(CacheSource(out, split, check=False).sample_ids.tolist()) for split in manifest.splits]
    except UsageError:  # damaged: this build is what mends it
        return ""
    return "" if any(wanted & ids for ids in found) else "of other images"


def finish(out: Path, recipe: Recipe, tasks: Sequence[ShardTask], results: Sequence[ShardResult]) -> Manifest:
    """Remove what earlier builds left, write `rejected.csv` and, last, the manifest.

    Raises:
        UsageError: A shard vanished meanwhile, or no image of a split could be read.
    """
    _remove_leftovers(out, {result.file for result in results})
    rejected: list[list[str]] = []
    facts: dict[str, list[_ShardFacts]] = {}
    for task, result in zip(tasks, results, strict=True):
        found = _ShardFacts(out, result.file, recipe)
        rejected += [[task.split, *reject] for reject in found.rejected]
        facts.setdefault(task.split, []).append(found)
    write_csv(out / REJECTED_NAME, ("split", "source", "class", "reason"), sorted(rejected))
    for split, shards in facts.items():
        if sum(shard.samples for shard in shards) == 0:
            raise UsageError(f"no image of the {split} split could be read; {out / REJECTED_NAME} says why")
    marks = "".join(shard.entry.fingerprint for shards in facts.values() for shard in shards)
    manifest = Manifest(
        classes=recipe.classes,
        recipe=recipe.values,
        fingerprint=sha256(marks.encode()).hexdigest(),
        splits={split: _split_entry(recipe.classes, shards) for split, shards in facts.items()},
        rejected=len(rejected),
        made_with=recipe.made_with,
    )
    manifest.write(out)
    return manifest


def _remove_leftovers(out: Path, wanted: set[str]) -> None:
    for entry in sorted(out.iterdir()):
        if _is_partial(entry):
            entry.unlink()
    for folder in (out / split for split in SPLITS):
        for file in sorted(folder.iterdir()) if folder.is_dir() else []:
            if SHARD_NAME.search(file.name) and f"{folder.name}/{file.name}" not in wanted:
                file.unlink()
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


class _ShardFacts:
    """What the manifest says about a shard, read back from the file."""

    def __init__(self, out: Path, name: str, recipe: Recipe) -> None:
        path = out / name
        metadata = read_metadata(path)
        if metadata is None:
            raise UsageError(f"{path} vanished or was damaged while the cache was being built; run the build again")
        shard = Shard(path, recipe.encoding, recipe.size)
        self.samples = int(metadata["samples"])
        self.rejected: list[list[str]] = metadata["rejected"]
        self.counts = np.bincount(shard.column("label"), minlength=len(recipe.classes))
        self.entry = ShardEntry(name, shard.rows, path.stat().st_size, file_sha256(path), metadata["fingerprint"])


def _split_entry(classes: tuple[str, ...], shards: list[_ShardFacts]) -> SplitEntry:
    counts = np.sum([shard.counts for shard in shards], axis=0)
    return SplitEntry(
        samples=sum(shard.samples for shard in shards),
        rows=sum(shard.entry.rows for shard in shards),
        classes={name: int(counts[index]) for index, name in enumerate(classes)},
        shards=tuple(shard.entry for shard in shards),
    )
