"""Export a cache to plain files: a folder of images per class, or numbered tar files for WebDataset.

`--to folders` writes OUT/train/CLASS/STEM_SAMPLEID_COPY.jpg and so on, and OUT/provenance.csv, which says of every
file where it comes from and what was done to it. torchvision's ImageFolder, Hugging Face's imagefolder and the build
job read it as it stands. `--to webdataset` writes OUT/train-000000.tar and so on, with KEY.jpg, KEY.cls (class index)
and KEY.json (all the rest) for every row, where KEY is SAMPLEID_COPY. Both write OUT/classes.json: the class names in
index order and how the export was made.

JPEG caches come out byte for byte, raw caches as lossless PNG. Every row is held against its checksums on the way; a
damaged one stops the export, and an export exists whole or not at all. Same cache and options, same bytes.
"""

import json
import math
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from augment_cache.exporting.folders import PROVENANCE_NAME, write_folders
from augment_cache.exporting.rows import open_rows, worker_threads
from augment_cache.exporting.webdataset import write_tars
from augment_cache.format.manifest import read_manifest
from pipelines.console.cores import usable_cores
from pipelines.console.files import whole_folder, write_json
from pipelines.console.job import run_job
from pipelines.console.output import human_bytes, human_seconds, render_table
from pipelines.console.progress import ProgressMeter
from pipelines.errors import UsageError
from pipelines.sources import SPLITS

FORMAT, VERSION = "tacopress-export", 1
CLASSES_NAME = "classes.json"
TAR_NAME = re.compile(rf"({'|'.join(SPLITS)})-\d{{6,}}\.tar")
MIB = 1 << 20
LEAST_MIB, MOST_MIB = 0.01, 1 << 20
EXAMPLE = """
  python -m augment_cache.export --cache out/cache --out out/plain
  python -m augment_cache.export --cache out/cache --out out/originals --split test --copies 0
  python -m augment_cache.export --cache out/cache --out out/tars --to webdataset --shard_mib 64 --seed 1
"""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Options of the export job.

    Args:
        cache: The cache to export.
        out: Folder to make.
        to: folders is one folder of images per class; webdataset is tar files.
        split: Only this split.
        copies: Only copies 0 to this number of each sample, 0 being the original; all when absent.
        shard_mib: webdataset: size in MiB that a tar does not exceed.
        shuffle: webdataset: write the rows in random order, because its readers shuffle no further than their buffer.
            false keeps the order of the cache, every sample beside its copies, and reads the disk from front to back.
        seed: webdataset: of that order.
        threads: Rows read, encoded and written at the same time; 0 takes every core. Does not change the bytes.
        overwrite: Replace an export in the same folder. A folder that holds anything else is kept.
    """

    cache: Path
    out: Path = Path("out/plain")
    to: Literal["folders", "webdataset"] = "folders"
    split: Literal["all", "train", "val", "test"] = "all"
    copies: int | None = None
    shard_mib: float = 256.0
    shuffle: bool = True
    seed: int = 0
    threads: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.copies is not None and self.copies < 0:
            raise UsageError(f"--copies must be at least 0, got {self.copies}; 0 exports originals only")
        if not (math.isfinite(self.shard_mib) and LEAST_MIB <= self.shard_mib <= MOST_MIB):
            raise UsageError(f"--shard_mib must be {LEAST_MIB} to {MOST_MIB}, got {self.shard_mib}")
        if not 0 <= self.seed < 2**64:
            raise UsageError(f"--seed must be 0 to 2**64 - 1, got {self.seed}")
        if not 0 <= self.threads <= 4096:
            raise UsageError(f"--threads must be 0 to 4096, got {self.threads}; 0 takes every core")


def export(config: ExportConfig) -> dict[str, Any]:
    """Export the cache.

    Returns:
        The report. Keys: `out`; `to`; `splits` {name: `rows`, `files` (or `tars`), `bytes`}; `classes` (names in index
        order); `seconds`.

    Raises:
        UsageError: No cache, no such split, names that no file can have, or something is in the way at `out`.
        CorruptSampleError: A row is damaged; the message names it and says how to mend the cache.
    """
    start = time.monotonic()
    _check_out(config)
    manifest = read_manifest(config.cache)
    splits = open_rows(config.cache, manifest, config.split, config.copies)
    threads = config.threads or usable_cores()
    with (
        whole_folder(config.out, overwrite=config.overwrite) as folder,
        worker_threads(threads) as pool,
        ProgressMeter("export", sum(map(len, splits)), "rows") as meter,
    ):
        if config.to == "folders":
            counts = write_folders(folder, manifest.classes, splits, pool, threads, meter.advance)
        else:
            seed, target = config.seed if config.shuffle else None, int(config.shard_mib * MIB)
            counts = write_tars(folder, splits, pool, threads, meter.advance, seed=seed, target_bytes=target)
        made = {"image": splits[0].suffix, "size": manifest.size, "options": _options(config)}
        head = {"format": FORMAT, "version": VERSION, "to": config.to, "classes": list(manifest.classes)}
        write_json(folder / CLASSES_NAME, {**head, **made, "splits": counts, "cache": manifest.fingerprint})
    return {
        "out": str(config.out),
        "to": config.to,
        "splits": counts,
        "classes": list(manifest.classes),
        "seconds": round(time.monotonic() - start, 3),
    }


def _options(config: ExportConfig) -> dict[str, Any]:
    """The options that decide the bytes."""
    options: dict[str, Any] = {"split": config.split, "copies": config.copies}
    if config.to == "folders":
        return options
    return {**options, "shard_mib": float(config.shard_mib), "seed": config.seed if config.shuffle else None}


def _check_out(config: ExportConfig) -> None:
    """`--overwrite` deletes what is there, so what is there has to be an export and nothing else."""
    out, cache = config.out.resolve(), config.cache.resolve()
    if out == cache or out in cache.parents or cache in out.parents:
        raise UsageError(f"--out {config.out} and --cache {config.cache} lie in one another; choose another --out")
    if not (config.overwrite and out.is_dir() and any(out.iterdir())):
        return
    if not _is_export(out / CLASSES_NAME):
        raise UsageError(f"--out {config.out} holds no export, so it is kept; choose another --out")
    strangers = sorted(entry.name for entry in out.iterdir() if not _is_ours(entry))
    if strangers:
        raise UsageError(f"--out {config.out} holds {strangers[0]!r}, which no export writes; move it elsewhere")


def _is_export(path: Path) -> bool:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(value, dict) and value.get("format") == FORMAT


def _is_ours(entry: Path) -> bool:
    if entry.is_dir():
        return entry.name in SPLITS
    return entry.name in (CLASSES_NAME, PROVENANCE_NAME) or TAR_NAME.fullmatch(entry.name) is not None


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    unit = "files" if report["to"] == "folders" else "tars"
    rows = [
        [split, counts["rows"], counts[unit], human_bytes(counts["bytes"])]
        for split, counts in report["splits"].items()
    ]
    total = human_bytes(sum(counts["bytes"] for counts in report["splits"].values()))
    return (
        f"{render_table(['split', '>rows', f'>{unit}', '>size'], rows)}\n"
        f"{total} in {report['out']}, {len(report['classes'])} classes, in {human_seconds(report['seconds'])}"
    )


def main() -> None:
    """Run the job."""
    run_job(
        ExportConfig,
        export,
        name="augment_cache.export",
        summary=(__doc__ or "").strip(),
        example=EXAMPLE,
        table=table,
    )


if __name__ == "__main__":
    main()
