"""Copy a cache to this machine's own disk, check every byte of the copy; do nothing where it is there already."""

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from augment_cache.building.lock import alone
from augment_cache.format.manifest import read_manifest
from augment_cache.opening.staged import PREFIX, SCRATCH, is_whole, staged_folder
from augment_cache.verifying.check import check_cache
from pipelines.console.files import whole_folder
from pipelines.console.job import run_job
from pipelines.console.output import human_bytes, human_seconds
from pipelines.errors import ProblemFoundError, UsageError

EXAMPLE = f"""
  python -m augment_cache.stage --cache out/cache --scratch /scratch/me
  export {SCRATCH}=/scratch/me    (all jobs then read the copy, under the name of the cache)
"""


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """Options of the stage job.

    Args:
        cache: The cache.
        scratch: Folder on this machine's own disk that only you can write to.
    """

    cache: Path
    scratch: Path


def stage(config: StageConfig) -> dict[str, Any]:
    """Copy, or find the copy.

    Returns:
        The report. Keys: `cache`; `copy`, its folder; `copied` (false where it was there); `bytes` of the shards;
        `seconds`.

    Raises:
        UsageError: There is no cache, or no room for it.
        ProblemFoundError: The copy is not what the manifest says, because the cache is damaged.
    """
    start = time.monotonic()
    size = sum(shard.bytes for shard in read_manifest(config.cache).shards.values())
    target = staged_folder(config.cache, config.scratch)
    config.scratch.mkdir(parents=True, exist_ok=True)
    with alone(config.scratch / f".{target.name}.lock"):
        there = is_whole(target)
        if not there:
            _clear(target)
            _copy(config, target, size)
    return {
        "cache": str(config.cache),
        "copy": str(target),
        "copied": not there,
        "bytes": size,
        "seconds": round(time.monotonic() - start, 3),
    }


def _clear(target: Path) -> None:
    """Remove what is left of a copy: of a process that was killed, or after files have been deleted."""
    for path in (target, *target.parent.glob(f".{target.name}.partial-*")):
        if path.exists():
            shutil.rmtree(path)


def _copy(config: StageConfig, target: Path, size: int) -> None:
    free = shutil.disk_usage(config.scratch).free
    if free < size:
        raise UsageError(
            f"--scratch {config.scratch} has {human_bytes(free)} left, {config.cache} takes {human_bytes(size)}; "
            f"delete copies of older caches ({target.parent / PREFIX}*), or do without"
        )
    with whole_folder(target, overwrite=False) as aside:
        _copy_files(config.cache, aside)
        damage = check_cache(aside, lambda _: None).damage
        if damage:
            raise ProblemFoundError(
                f"{config.cache} or its copy is damaged ({damage[0].file}: {damage[0].what}); "
                f"run python -m augment_cache.verify --cache {config.cache}"
            )


def _copy_files(source: Path, target: Path) -> None:
    """Contents without permissions: what is read-only there must be replaced here one day."""
    for folder, names, files in os.walk(source, followlinks=True):
        names[:] = [name for name in names if not name.startswith(".")]
        into = target / Path(folder).relative_to(source)
        into.mkdir(exist_ok=True)
        for name in files:
            if not name.startswith("."):
                shutil.copyfile(Path(folder) / name, into / name)


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    what = "copied to" if report["copied"] else "is there already:"
    cost = f"{human_bytes(report['bytes'])}, {human_seconds(report['seconds'])}"
    return f"{report['cache']} {what} {report['copy']} ({cost})"


def main() -> None:
    """Run the job."""
    run_job(StageConfig, stage, name="augment_cache.stage", summary=__doc__ or "", example=EXAMPLE, table=table)


if __name__ == "__main__":
    main()
