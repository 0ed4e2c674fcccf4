"""Open caches and annotated photos; `pipelines.opening` finds this through the package's entry point."""

from pathlib import Path

from augment_cache.annotations.source import open_annotations
from augment_cache.format.manifest import MANIFEST_NAME, Manifest, read_manifest
from augment_cache.format.source import CacheSource
from augment_cache.opening.staged import nearest
from pipelines.errors import UsageError
from pipelines.opening import OpenOptions
from pipelines.sources import Source

ANNOTATIONS_NAME = "annotations.json"


def open_sources(path: Path, options: OpenOptions) -> dict[str, Source] | None:
    """Open a cache, or a folder of photos with `annotations.json` (as the crop job would cut it with its own defaults).

    Args:
        path: The folder.
        options: How to read it.

    Returns:
        Split → source; None if it is neither.

    Raises:
        UsageError: It is a cache that was never finished, or damaged; or the annotations cannot be used.
    """
    if (path / MANIFEST_NAME).is_file():
        path = nearest(path)
        manifest = read_manifest(path)
        return {split: _cache(path, split, options, manifest) for split in options.splits or manifest.splits}
    if any(path.glob("*/shard-*.arrow")):
        raise UsageError(f"{path} is an unfinished cache; run the same augment_cache.build again, it goes on")
    if (path / ANNOTATIONS_NAME).is_file():
        cut, empty = options.split, options.allow_empty_classes
        found = open_annotations(path, val=cut.val, test=cut.test, seed=cut.seed, allow_empty_classes=empty)
        return dict(found)
    return None


def _cache(path: Path, split: str, options: OpenOptions, manifest: Manifest) -> CacheSource:
    copies = options.copies if split == "train" else 0
    return CacheSource(path, split, copies=copies, check=options.check, manifest=manifest)
