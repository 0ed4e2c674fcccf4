"""Show what a cache holds: classes, copies, ops with their strengths, sizes; as tables, as JSON, as a picture."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from augment_cache.format.manifest import VERSION, read_manifest
from augment_cache.statistics.facts import rejected_facts, split_facts
from augment_cache.statistics.tables import info_text
from pipelines.console.files import write_bytes
from pipelines.console.job import run_job
from pipelines.errors import UsageError

EXAMPLE = """
  python -m augment_cache.info --cache out/cache
  python -m augment_cache.info --cache out/cache --split train --plot out/info.png
  python -m augment_cache.info --cache out/cache --json
"""


@dataclass(frozen=True, kw_only=True)
class InfoConfig:
    """Options of the info job.

    Args:
        cache: Folder of the cache.
        split: Only this split; all of them without it.
        plot: Draw the counts too, into this PNG.
    """

    cache: Path = Path("out/cache")
    split: str | None = None
    plot: Path | None = None

    def __post_init__(self) -> None:
        if self.plot is not None and self.plot.suffix.lower() != ".png":
            raise UsageError(f"--plot writes a PNG, so its name must end in .png, got {self.plot}")


def info(config: InfoConfig) -> dict[str, Any]:
    """Count what a cache holds. Images are not read; use verify to hold them against their checksums.

    Returns:
        The report. Keys: `folder`; `classes`; `recipe` as the manifest has it (`size`, `fit`, `encoding`, `quality`,
        `copies`, `seed`, `engine`, `policy`, …); `made_with` {library: version}; `fingerprint`; `format_version`;
        `rejected` (`count`, `splits` {name: images}, `reasons` {reason: images}; always of the whole cache); `splits`
        {name: `samples`, `rows`, `bytes` on disk, `shards`, `classes` {name: rows}, `originals` {name: samples},
        `balance` (`largest` and `smallest` class, `ratio` of their originals or null), `copies` [rows per copy
        number], `ops_per_copy` [copies by number of ops], `ops` {name: `rows`, `times`, `mean_strength` of the
        magnitudes without sign, `least` and `most` signed, `histogram` (`edges`, `counts`)}, `image_share` of the
        bytes on disk, `image_bytes` (`min`, `median`, `mean`, `max`, `total`), `image_histogram` (`edges`, `counts`),
        null where all images have one size}; `plot`.

    Raises:
        UsageError: No cache, no such split, or a shard is missing or damaged.
    """
    manifest = read_manifest(config.cache)
    splits = list(manifest.splits) if config.split is None else [config.split]
    if config.split is not None and config.split not in manifest.splits:
        raise UsageError(f"{config.cache} has no split {config.split!r}; it has {', '.join(manifest.splits)}")
    report = {
        "folder": str(config.cache),
        "classes": list(manifest.classes),
        "recipe": manifest.recipe,
        "made_with": manifest.made_with,
        "fingerprint": manifest.fingerprint,
        "format_version": VERSION,
        "rejected": rejected_facts(config.cache, manifest),
        "splits": split_facts(config.cache, manifest, splits),
        "plot": None if config.plot is None else str(config.plot),
    }
    if config.plot is not None:
        # matplotlib takes longer to import than everything else here takes to count.
        from augment_cache.statistics.figure import draw_info

        write_bytes(config.plot, draw_info(report))
    return report


def main() -> None:
    """Run the job."""
    run_job(InfoConfig, info, name="augment_cache.info", summary=__doc__ or "", example=EXAMPLE, table=info_text)


if __name__ == "__main__":
    main()
