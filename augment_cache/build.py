"""Build an augmentation cache: originals plus augmented copies, as Arrow shards with provenance in every row."""

import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from augment_cache.building.folder import claim, finish
from augment_cache.building.run import Workers, build_shards
from augment_cache.building.shard_plan import ShardTask, assign, shard_count
from augment_cache.building.worker import Recipe
from augment_cache.format.manifest import Manifest
from augment_cache.format.policy import load_policy, policy_as_dict
from augment_cache.format.shards import Encoding
from pipelines.console.cores import usable_cores
from pipelines.console.job import run_job
from pipelines.console.output import human_bytes, human_seconds, render_table
from pipelines.console.progress import ProgressMeter
from pipelines.datasets import SplitOptions, open_splits
from pipelines.engines.choose import DeviceName, EngineName, resolve_device, resolve_engine
from pipelines.engines.dali_compat import require_dali
from pipelines.errors import UsageError
from pipelines.fit import Fit
from pipelines.sources import FolderSource

EXAMPLE = """
  python -m augment_cache.build --data out/crops --out out/cache
  python -m augment_cache.build --data trashnet --out out/trashnet --size 80 --encoding raw --processes 2
"""
MIB = 1 << 20
PIXEL_PACKAGES = ("numpy", "opencv-python-headless", "pillow", "pyarrow", "simplejpeg", "torch")
RENDERER = "1"
"""Raised whenever Tacopress itself would give other pixels for the same plan."""
LEAST_MIB, MOST_MIB = 1e-5, 512.0


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """Options of the build job.

    Args:
        data: Folder of crops (train/, val/, test/ as the crop job writes them) or of class folders.
        out: Folder of the cache. A build that was stopped goes on here.
        size: Side of the cached images in px.
        fit: How other shapes become square: pad shows all on grey, stretch distorts, crop cuts the centre out.
        encoding: jpeg is small; raw is decoded once and for all, 3 bytes per pixel.
        quality: JPEG quality, 1 to 100.
        copies: Augmented copies of each training image, beside the original. Validation and test are never augmented.
        policy: What copies may get: name of a shipped policy or path of a YAML file.
        seed: Of the augmentation plan: same seed, same bytes.
        val: Share for validation, where data holds class folders without splits.
        test: Share for the test, likewise.
        split_seed: Which of the possible splits, likewise.
        engine: Carries out the plan. auto is DALI on a GPU, the cpu engine otherwise.
        device: Where DALI works.
        processes: Processes that build shards side by side; the bytes stay the same.
        threads: CPU threads of all processes together; 0 for one per core.
        batch: Images rendered together; the bytes stay the same.
        shard_mib: Rough size of a shard in MiB.
        strict: Stop at the first image that cannot be read, instead of listing it in rejected.csv.
        allow_empty_classes: Accept classes without images.
        overwrite: Replace another cache in the same folder.
    """

    data: Path
    out: Path = Path("out/cache")
    size: int = 64
    fit: Fit = "pad"
    encoding: Encoding = "jpeg"
    quality: int = 90
    copies: int = 2
    policy: str = "taco14"
    seed: int = 0
    val: float = 0.15
    test: float = 0.15
    split_seed: int = 0
    engine: EngineName = "auto"
    device: DeviceName = "auto"
    processes: int = 1
    threads: int = 0
    batch: int = 128
    shard_mib: float = 4.0
    strict: bool = False
    allow_empty_classes: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        limits = {"size": (4, 4096), "quality": (1, 100), "copies": (0, 1000), "seed": (0, 2**64 - 1)}
        limits |= {"processes": (1, 1024), "threads": (0, 4096), "batch": (1, 65536)}
        for name, (least, most) in limits.items():
            if not least <= getattr(self, name) <= most:
                raise UsageError(f"--{name} must be {least} to {most}, got {getattr(self, name)}")
        # A shard is one record batch, and Arrow's binary columns end at 2 GiB.
        if not LEAST_MIB <= self.shard_mib <= MOST_MIB:
            raise UsageError(f"--shard_mib must be {LEAST_MIB} to {MOST_MIB}, got {self.shard_mib}")


def build(config: BuildConfig) -> dict[str, Any]:
    """Build the cache.

    Returns:
        The report. Keys: `out`; `classes`; `splits` {name: `samples`, `rows`, `bytes`, `shards`, `classes` {name:
        rows}}; `rejected`; `reused_shards`; `engine`; `bytes`; `seconds`; `sources_per_second`.
    """
    start = time.monotonic()
    options = SplitOptions(config.val, config.test, config.split_seed)
    sources = open_splits(config.data, options, allow_empty_classes=config.allow_empty_classes)
    recipe = make_recipe(config, next(iter(sources.values())).classes)
    tasks = make_tasks(config, sources)
    claim(config.out, recipe, tasks, overwrite=config.overwrite)
    workers = Workers(
        engine=config.engine,
        device=config.device,
        processes=config.processes,
        threads=config.threads or usable_cores(),
        batch=config.batch,
        strict=config.strict,
    )
    total = sum(len(task.files) for task in tasks)
    with ProgressMeter("build", total, "sources") as progress:
        results = build_shards(recipe, tasks, config.out, workers, progress.advance)
    manifest = finish(config.out, recipe, tasks, results)
    return _report(config.out, manifest, sum(result.reused for result in results), time.monotonic() - start)


def make_recipe(config: BuildConfig, classes: tuple[str, ...]) -> Recipe:
    """Everything that decides the bytes of the cache, apart from the sources."""
    policy = load_policy(config.policy)
    device = resolve_device(config.device)
    engine = resolve_engine(config.engine, device)
    values: dict[str, Any] = {
        "size": config.size,
        "fit": config.fit,
        "encoding": config.encoding,
        "quality": config.quality if config.encoding == "jpeg" else None,
        "copies": config.copies,
        "seed": config.seed,
        "policy": policy_as_dict(policy),
        "split": {"val": float(config.val), "test": float(config.test), "seed": config.split_seed},
        "engine": engine if engine == "cpu" else f"dali-{device}",
        "shard_mib": float(config.shard_mib),
    }
    return Recipe(
        classes=classes,
        values=values,
        made_with=_made_with(engine),
        policy=policy,
        seed=config.seed,
        size=config.size,
        fit=config.fit,
        encoding=config.encoding,
        quality=config.quality,
    )


def _made_with(engine: str) -> dict[str, str]:
    made_with = {"renderer": RENDERER, **{name: version(name) for name in PIXEL_PACKAGES}}
    return {**made_with, "dali": require_dali()} if engine == "dali" else made_with


def make_tasks(config: BuildConfig, sources: dict[str, FolderSource]) -> list[ShardTask]:
    """Cut every split into shards; only the train split gets copies."""
    tasks = []
    for split, source in sources.items():
        copies = config.copies if split == "train" else 0
        count = shard_count(len(source.files), copies, config.size, config.encoding, int(config.shard_mib * MIB))
        for index, rows in enumerate(assign(source.ids, count)):
            files = tuple(source.files[row] for row in rows.tolist())
            labels, ids = tuple(source.labels[rows].tolist()), tuple(source.ids[rows].tolist())
            tasks.append(ShardTask(split, index, count, copies, files, labels, ids, str(source.root)))
    return tasks


def _report(out: Path, manifest: Manifest, reused: int, seconds: float) -> dict[str, Any]:
    splits = {
        name: {
            "samples": entry.samples,
            "rows": entry.rows,
            "bytes": sum(shard.bytes for shard in entry.shards),
            "shards": len(entry.shards),
            "classes": entry.classes,
        }
        for name, entry in manifest.splits.items()
    }
    samples = sum(entry.samples for entry in manifest.splits.values())
    return {
        "out": str(out),
        "classes": list(manifest.classes),
        "splits": splits,
        "rejected": manifest.rejected,
        "reused_shards": reused,
        "engine": manifest.recipe["engine"],
        "bytes": sum(shard.bytes for entry in manifest.splits.values() for shard in entry.shards),
        "seconds": round(seconds, 3),
        "sources_per_second": round(samples / seconds, 1) if seconds else 0.0,
    }


def table(report: dict[str, Any]) -> str:
    """The report for people: rows per class and split."""
    splits = report["splits"]
    headers = ["class", *(f">{name}" for name in splits)]
    rows: list[list[object]] = [
        [name, *(entry["classes"][name] for entry in splits.values())] for name in report["classes"]
    ]
    rows.append(["all rows", *(entry["rows"] for entry in splits.values())])
    rows.append(["originals", *(entry["samples"] for entry in splits.values())])
    rows.append(["shards", *(entry["shards"] for entry in splits.values())])
    rows.append(["size", *(human_bytes(entry["bytes"]) for entry in splits.values())])
    reused = f", {report['reused_shards']} shards reused" if report["reused_shards"] else ""
    rejected = (
        f"{report['rejected']} rejected (see {report['out']}/rejected.csv)" if report["rejected"] else "none rejected"
    )
    return (
        f"{render_table(headers, rows, title='augmentation cache, rows per class')}\n"
        f"{human_bytes(report['bytes'])} in {report['out']} by the {report['engine']} engine; {rejected}{reused}; "
        f"{human_seconds(report['seconds'])}, {report['sources_per_second']:,.0f} sources/s"
    )


def main() -> None:
    """Run the job."""
    run_job(
        BuildConfig,
        build,
        name="augment_cache.build",
        summary=__doc__ or "",
        example=EXAMPLE,
        table=table,
    )


if __name__ == "__main__":
    main()
