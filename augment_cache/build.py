"""Build an augmentation cache: originals plus augmented copies, as Arrow shards with provenance in every row."""

import time
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from augment_cache.building.folder import claim, finish, known_shards, missing_shards, refuse_strangers
from augment_cache.building.lock import building, turn
from augment_cache.building.run import Workers, build_shards
from augment_cache.building.shard_plan import ShardTask, assign, shard_count
from augment_cache.building.state import read_identity, read_splits
from augment_cache.building.worker import Advance, Claim, Recipe, ShardResult
from augment_cache.format.manifest import MANIFEST_NAME, Manifest
from augment_cache.format.policy import PolicyFile, policy_as_dict, read_policy
from augment_cache.format.shards import Encoding
from pipelines.console.cores import usable_cores
from pipelines.console.job import run_job
from pipelines.console.output import human_bytes, human_seconds, render_table
from pipelines.console.progress import ProgressMeter
from pipelines.console.ranges import check_ranges
from pipelines.datasets import SplitOptions, has_splits, open_splits
from pipelines.engines.choose import DeviceName, EngineName, resolve_device, resolve_engine
from pipelines.engines.dali_compat import require_dali
from pipelines.errors import UsageError
from pipelines.fit import Fit
from pipelines.sources import FolderSource

EXAMPLE = """
  python -m augment_cache.build --data out/crops --out out/cache
  python -m augment_cache.build --data trashnet --out out/trashnet --size 80 --encoding raw --processes 2
  python -m augment_cache.build --data out/crops --out out/cache --part 0 --of 8   (and 1 to 7, anywhere, any time)
"""
MIB = 1 << 20
PIXEL_PACKAGES = ("numpy", "opencv-python-headless", "pillow", "pyarrow", "simplejpeg", "torch")
SOURCES_WORTH_A_PROCESS = 200
"""Per process, fewer are built sooner than another process is started."""
RENDERER = "3"
"""Raised whenever Tacopress itself would give other pixels for the same plan."""
LEAST_MIB, MOST_MIB = 1e-5, 512.0


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """Options of the build job.

    Args:
        data: Folder of crops (train/, val/, test/ as the crop job writes them) or of class folders.
        out: Folder of the cache. A build that was stopped goes on here, and after files were added, removed or changed
            only the shards that hold them are built again.
        size: Side of the cached images in px.
        fit: How other shapes become square: pad shows all on grey, stretch distorts, crop cuts the centre out.
        encoding: jpeg is small; raw is decoded once and for all, 3 bytes per pixel.
        quality: JPEG quality, 1 to 100.
        copies: Augmented copies of each training image, beside the original; a policy may say otherwise for some
            classes. Validation and test are never augmented.
        policy: What copies may get: taco14, randaugment, p4-2021, level3-2021, randaugment-nN-mM (N ops, each at
            magnitude M of 31), or path of a YAML file.
        seed: Of the augmentation plan: same seed, same bytes.
        val: Share for validation, where data holds class folders without splits.
        test: Share for the test, likewise.
        split_seed: Which of the possible splits, likewise.
        engine: Carries out the plan. auto is DALI on a GPU, the cpu engine otherwise.
        device: Where DALI works.
        processes: Processes that build shards side by side; 0 for one per core if there is much to do. The bytes stay
            the same.
        threads: CPU threads of all processes together; 0 for one per core.
        batch: Images rendered together; the bytes stay the same.
        shard_mib: Rough size of a shard in MiB.
        strict: Stop at the first image that cannot be read, instead of listing it in rejected.csv.
        allow_empty_classes: Accept classes without images.
        force: Replace another cache in the same folder: one with another policy, seed, size or encoding.
        part: Build only this share of the shards, counted from 0 (in a Slurm array: $SLURM_ARRAY_TASK_ID). Whichever
            part finishes last writes the manifest; the bytes stay the same.
        of: Number of parts.
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
    processes: int = 0
    threads: int = 0
    batch: int = 128
    shard_mib: float = 4.0
    strict: bool = False
    allow_empty_classes: bool = False
    force: bool = False
    part: int = 0
    of: int = 1

    def __post_init__(self) -> None:
        limits = {"size": (4, 4096), "quality": (1, 100), "copies": (0, 1000), "seed": (0, 2**64 - 1)}
        limits |= {"processes": (0, 1024), "threads": (0, 4096), "batch": (1, 65536), "of": (1, 100_000)}
        check_ranges({f"--{name}": (getattr(self, name), *limit) for name, limit in limits.items()})
        if not 0 <= self.part < self.of:
            raise UsageError(f"--part counts from 0: with --of {self.of} it is 0 to {self.of - 1}, got {self.part}")
        # A shard is one record batch, and Arrow's binary columns end at 2 GiB.
        if not LEAST_MIB <= self.shard_mib <= MOST_MIB:
            raise UsageError(f"--shard_mib must be {LEAST_MIB} to {MOST_MIB}, got {self.shard_mib}")


@dataclass(frozen=True)
class Plan:
    """All that is known before the first image is read.

    Attributes:
        recipe: What decides the bytes.
        tasks: All shards.
        cut: The splits were cut here, not found in the data.
    """

    recipe: Recipe
    tasks: list[ShardTask]
    cut: bool


def build(config: BuildConfig) -> dict[str, Any]:
    """Build the cache.

    Returns:
        The report. Keys: `out`; `complete` (with --part: whether this part was the last); `classes`; `splits` {name:
        `samples`, `rows`, `bytes`, `shards`, `classes` {name: rows}}; `rejected`; `built_shards`, `reused_shards`;
        `sources`, `reused_sources` (of this part); `missing_shards` (left to other parts); `engine`; `bytes`;
        `seconds`; `sources_per_second`. While it is not complete, `splits` is empty.
    """
    start = time.monotonic()
    data, out = config.data.resolve(), config.out.resolve()
    if out == data or (data in out.parents and not any(part[0] == "." for part in out.relative_to(data).parts)):
        raise UsageError(f"--out {config.out} lies in --data {config.data}, whose folders are classes; choose another")
    refuse_strangers(config.out)
    plan = make_plan(config)
    total = sum(len(task.files) for task in plan.tasks[config.part :: config.of])
    part = (config.part, config.of) if config.of > 1 else None
    with building(config.out, part), ProgressMeter("build", total, "sources") as progress:
        outcome = carry_out(config, plan, progress.advance)
    return _report(config.out, plan.recipe, outcome, time.monotonic() - start)


@dataclass(frozen=True)
class Outcome:
    """What became of a build.

    Attributes:
        manifest: None while shards of other parts are missing.
        results: The shards of this part.
        missing: Shards of other parts.
    """

    manifest: Manifest | None
    results: list[ShardResult]
    missing: list[str]


def carry_out(config: BuildConfig, plan: Plan, advance: Advance) -> Outcome:
    """Build what a plan says, in a folder that the caller holds (`building`)."""
    tasks = plan.tasks[config.part :: config.of]
    with turn(config.out):
        given = claim(config.out, plan.recipe, plan.tasks, cut=plan.cut, force=config.force, part=config.of > 1)
    results = build_shards(plan.recipe, tasks, config.out, make_workers(config, tasks), advance, given)
    with turn(config.out):
        missing = _left_to_others(config, plan, given, results) if config.of > 1 else []
        empty = config.allow_empty_classes
        manifest = None if missing else finish(config.out, plan.recipe, plan.tasks, results, allow_empty_classes=empty)
    return Outcome(manifest, results, missing)


def _left_to_others(config: BuildConfig, plan: Plan, given: Claim, results: list[ShardResult]) -> list[str]:
    """Shards of other parts that are missing or out of date; then there is no manifest any more."""
    # A cache that was whole, and of which this part has changed nothing, stays as it is.
    whole = bool(given.known) and known_shards(config.out, plan.tasks) == given.known
    untouched = whole and all(result.reused for result in results)
    others = [task for number, task in enumerate(plan.tasks) if number % config.of != config.part]
    threads = config.threads or usable_cores()
    missing = missing_shards(config.out, plan.recipe, others, 0 if untouched else threads)
    if missing and not untouched:
        (config.out / MANIFEST_NAME).unlink(missing_ok=True)
    return missing


def make_plan(config: BuildConfig, policy: PolicyFile | None = None, known: dict[str, str] | None = None) -> Plan:
    """Find the sources, cut them into splits and shards, and say what becomes of them.

    Args:
        config: The options.
        policy: In place of the one that the options name.
        known: File → split of files that keep theirs; from the cache that is there, if absent.
    """
    policy = policy or read_policy(config.policy)
    values, made_with = _recipe_values(config, policy)
    if known is None:
        found = None if config.force else read_identity(config.out)
        known = read_splits(config.out) if found is not None and found.recipe == values else {}
    options = SplitOptions(config.val, config.test, config.split_seed)
    sources = open_splits(config.data, options, allow_empty_classes=config.allow_empty_classes, known=known)
    classes = next(iter(sources.values())).classes
    strangers = sorted(set(policy.class_copies) - set(classes))
    if strangers:
        raise UsageError(
            f"policy {config.policy}: class_copies names {strangers[0]!r}, which is none of the classes "
            f"{', '.join(classes)}; correct the name"
        )
    recipe = Recipe(
        classes=classes,
        values=values,
        made_with=made_with,
        policy=policy,
        seed=config.seed,
        size=config.size,
        fit=config.fit,
        encoding=config.encoding,
        quality=config.quality,
    )
    return Plan(recipe, make_tasks(config, recipe, sources), cut=not has_splits(config.data))


def _recipe_values(config: BuildConfig, policy: PolicyFile) -> tuple[dict[str, Any], dict[str, str]]:
    """What decides the bytes of the cache, apart from the sources, and the versions of all that moves pixels."""
    device = resolve_device(config.device)
    engine = resolve_engine(config.engine, device)
    values = {
        "size": config.size,
        "fit": config.fit,
        "encoding": config.encoding,
        "quality": config.quality if config.encoding == "jpeg" else None,
        "copies": config.copies,
        "class_copies": dict(policy.class_copies),
        "seed": config.seed,
        "policy": policy_as_dict(policy.policy),
        "split": {"val": float(config.val), "test": float(config.test), "seed": config.split_seed},
        "engine": engine if engine == "cpu" else f"dali-{device}",
        "shard_mib": float(config.shard_mib),
    }
    return values, _made_with(engine)


def _made_with(engine: str) -> dict[str, str]:
    made_with = {"renderer": RENDERER, **{name: _version(name) for name in PIXEL_PACKAGES}}
    return {**made_with, "dali": require_dali()} if engine == "dali" else made_with


_version = cache(version)


def make_tasks(config: BuildConfig, recipe: Recipe, sources: dict[str, FolderSource]) -> list[ShardTask]:
    """Cut every split into shards; only the train split gets copies."""
    copies_of = [recipe.policy.class_copies.get(name, config.copies) for name in recipe.classes]
    tasks = []
    for split, source in sources.items():
        table = np.array(copies_of if split == "train" else [0] * len(copies_of), np.int16)
        copies = table[source.labels]
        rows = len(source.files) + int(copies.sum(dtype=np.int64))
        count = shard_count(rows, config.size, config.encoding, int(config.shard_mib * MIB))
        for index, part in enumerate(assign(source.ids, count)):
            files = tuple(source.files[row] for row in part.tolist())
            root = str(source.root)
            task = ShardTask(split, index, count, files, source.labels[part], source.ids[part], copies[part], root)
            tasks.append(task)
    return tasks


def make_workers(config: BuildConfig, tasks: list[ShardTask]) -> Workers:
    """Who builds: several processes where there is enough to do to make up for starting them."""
    threads = config.threads or usable_cores()
    device = resolve_device(config.device)
    engine = resolve_engine(config.engine, device)
    several = engine == "cpu" and sum(len(task.files) for task in tasks) > SOURCES_WORTH_A_PROCESS * threads
    return Workers(
        engine=engine,
        device=device if engine == "dali" else "cpu",
        processes=config.processes or (threads if several else 1),
        threads=threads,
        batch=config.batch,
        strict=config.strict,
    )


def _report(out: Path, recipe: Recipe, outcome: Outcome, seconds: float) -> dict[str, Any]:
    manifest, results = outcome.manifest, outcome.results
    splits = manifest.splits if manifest is not None else {}
    sources = sum(result.sources for result in results)
    sizes = {name: sum(shard.bytes for shard in entry.shards) for name, entry in splits.items()}
    return {
        "out": str(out),
        "complete": manifest is not None,
        "classes": list(recipe.classes),
        "splits": {
            name: {
                "samples": entry.samples,
                "rows": entry.rows,
                "bytes": sizes[name],
                "shards": len(entry.shards),
                "classes": entry.classes,
            }
            for name, entry in splits.items()
        },
        "rejected": manifest.rejected if manifest is not None else None,
        "built_shards": sum(not result.reused for result in results),
        "reused_shards": sum(result.reused for result in results),
        "sources": sources,
        "reused_sources": sum(result.sources for result in results if result.reused),
        "missing_shards": len(outcome.missing),
        "engine": recipe.values["engine"],
        "bytes": sum(sizes.values()),
        "seconds": round(seconds, 3),
        "sources_per_second": round(sources / seconds, 1) if seconds else 0.0,
    }


def _work(report: dict[str, Any]) -> str:
    """What was done and what was there already, in words."""
    shards = report["built_shards"] + report["reused_shards"]
    reused = (
        f"reused {report['reused_shards']:,} of {shards:,} shards ({report['reused_sources']:,} of "
        f"{report['sources']:,} sources); "
        if report["reused_shards"]
        else ""
    )
    return f"{reused}{human_seconds(report['seconds'])}, {report['sources_per_second']:,.0f} sources/s"


def table(report: dict[str, Any]) -> str:
    """The report for people: rows per class and split."""
    if not report["complete"]:
        shards = report["built_shards"] + report["reused_shards"]
        return (
            f"this part is done: {shards:,} shards in {report['out']}; {_work(report)}\n"
            f"{report['missing_shards']:,} shards are left to other parts; the last one writes the manifest"
        )
    splits = report["splits"]
    headers = ["class", *(f">{name}" for name in splits)]
    rows: list[list[object]] = [
        [name, *(entry["classes"][name] for entry in splits.values())] for name in report["classes"]
    ]
    rows.append(["all rows", *(entry["rows"] for entry in splits.values())])
    rows.append(["originals", *(entry["samples"] for entry in splits.values())])
    rows.append(["shards", *(entry["shards"] for entry in splits.values())])
    rows.append(["size", *(human_bytes(entry["bytes"]) for entry in splits.values())])
    rejected = (
        f"{report['rejected']} rejected (see {report['out']}/rejected.csv)" if report["rejected"] else "none rejected"
    )
    return (
        f"{render_table(headers, rows, title='augmentation cache, rows per class')}\n"
        f"{human_bytes(report['bytes'])} in {report['out']} by the {report['engine']} engine; {rejected}; "
        f"{_work(report)}"
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
