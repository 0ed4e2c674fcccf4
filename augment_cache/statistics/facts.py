"""What a cache holds, as plain values."""

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from augment_cache.format.manifest import REJECTED_NAME, Manifest, SplitEntry
from augment_cache.statistics.columns import cure, read_columns
from augment_cache.statistics.histogram import Spread, binned, merged, round_edges
from augment_cache.statistics.tally import Tally, policy_ranges
from pipelines.augmentations import CODES
from pipelines.errors import UsageError


def split_facts(folder: Path, manifest: Manifest, splits: list[str]) -> dict[str, dict[str, Any]]:
    """Count splits; the bins of the image sizes are the same in all of them.

    Args:
        folder: The cache.
        manifest: Its manifest.
        splits: Which splits.

    Returns:
        Name → facts, see the report of `augment_cache.info`.

    Raises:
        UsageError: A shard is missing or damaged, or holds something else than the manifest says.
    """
    tallies = {split: _count(folder, manifest, split) for split in splits}
    sizes = Spread(np.zeros(0, np.int64), np.zeros(0, np.int64))
    for tally in tallies.values():
        sizes = merged(sizes, tally.image_bytes)
    # Images that are all of one size, as raw ones are, need no histogram.
    edges = round_edges(int(sizes.values[0]), int(sizes.values[-1])) if len(sizes.values) > 1 else None
    facts = {}
    for split, tally in tallies.items():
        size = sum((folder / shard.file).stat().st_size for shard in manifest.splits[split].shards)
        facts[split] = {
            **_rows(manifest, split, tally, size),
            "image_bytes": _image_bytes(tally.image_bytes),
            "image_histogram": None if edges is None else _histogram(tally.image_bytes, edges),
        }
    return facts


def _count(folder: Path, manifest: Manifest, split: str) -> Tally:
    entry = manifest.splits[split]
    tally = Tally(len(manifest.classes), policy_ranges(manifest.recipe.get("policy")))
    for shard in entry.shards:
        columns = read_columns(folder / shard.file, len(manifest.classes))
        if len(columns.labels) != shard.rows:
            raise UsageError(
                f"{folder / shard.file} has {len(columns.labels)} rows, not {shard.rows} as the manifest says; "
                f"{cure(folder)}"
            )
        tally.add(columns)
    _hold_against(folder, manifest, split, entry, tally)
    return tally


def _hold_against(folder: Path, manifest: Manifest, split: str, entry: SplitEntry, tally: Tally) -> None:
    said = [entry.classes.get(name) for name in manifest.classes]
    if said != tally.rows.tolist() or entry.samples != int(tally.originals.sum()):
        raise UsageError(
            f"the {split} split of {folder} holds other rows or originals of its classes than its manifest says; "
            f"{cure(folder)}"
        )


def _rows(manifest: Manifest, split: str, tally: Tally, size: int) -> dict[str, Any]:
    originals = dict(zip(manifest.classes, tally.originals.tolist(), strict=True))
    ops = sorted(tally.ops, key=lambda name: (CODES.get(name, len(CODES)), name))
    return {
        "samples": int(tally.originals.sum()),
        "rows": int(tally.rows.sum()),
        "bytes": size,
        "shards": len(manifest.splits[split].shards),
        "classes": dict(zip(manifest.classes, tally.rows.tolist(), strict=True)),
        "originals": originals,
        "balance": _balance(originals),
        "copies": tally.copies.tolist(),
        "ops_per_copy": tally.ops_per_copy.tolist(),
        "ops": {name: tally.ops[name].as_dict() for name in ops},
        "image_share": round(tally.image_bytes.total / size, 4),
    }


def _balance(originals: dict[str, int]) -> dict[str, Any]:
    largest = max(originals, key=lambda name: originals[name])
    smallest = min(originals, key=lambda name: originals[name])
    least = originals[smallest]
    return {
        "largest": largest,
        "smallest": smallest,
        "ratio": round(originals[largest] / least, 4) if least else None,
    }


def _image_bytes(sizes: Spread) -> dict[str, Any]:
    if not len(sizes.values):
        return {"min": None, "median": None, "mean": None, "max": None, "total": 0}
    return {
        "min": int(sizes.values[0]),
        "median": sizes.median(),
        "mean": round(sizes.total / int(sizes.counts.sum()), 2),
        "max": int(sizes.values[-1]),
        "total": sizes.total,
    }


def _histogram(sizes: Spread, edges: NDArray[np.int64]) -> dict[str, list[int]]:
    return {"edges": edges.tolist(), "counts": binned(sizes, edges).tolist()}


def rejected_facts(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """What `rejected.csv` lists: `count`, `splits` {name: number}, `reasons` {reason: number}, the most frequent first.

    Raises:
        UsageError: The file is missing or damaged, or lists more or less than the manifest counts.
    """
    path = folder / REJECTED_NAME
    try:
        with path.open(encoding="utf-8", newline="") as file:
            found = [(row["split"], row["reason"]) for row in csv.DictReader(file)]
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise UsageError(f"{path} is missing or damaged ({error!r}); {cure(folder)}") from error
    if len(found) != manifest.rejected:
        raise UsageError(f"{path} lists {len(found)} images, the manifest {manifest.rejected}; {cure(folder)}")
    reasons = sorted(Counter(reason for _, reason in found).items(), key=lambda item: (-item[1], item[0]))
    return {"count": len(found), "splits": dict(Counter(split for split, _ in found)), "reasons": dict(reasons)}
