"""Build damaged shards again, aside, and put them in place if they are what the manifest says."""

import glob
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from augment_cache.build import BuildConfig, Plan, carry_out, make_plan, make_workers
from augment_cache.building.folder import missing_shards, write_rejected
from augment_cache.building.lock import building
from augment_cache.building.run import build_shards
from augment_cache.building.shard_plan import ShardTask
from augment_cache.building.state import SPLITS_NAME, Identity, read_identity, read_splits, write_splits
from augment_cache.building.worker import Claim
from augment_cache.format.manifest import BUILD_NAME, MANIFEST_NAME, REJECTED_NAME, SHARD_NAME, Manifest, file_sha256
from augment_cache.format.policy import PolicyFile, policy_from_dict
from augment_cache.format.shards import Shard, read_metadata
from augment_cache.verifying.check import Findings
from pipelines.console.progress import ProgressMeter
from pipelines.errors import ProblemFoundError, UsageError

CURE = "bring the whole cache up to date with python -m augment_cache.build"


def repair_cache(cache: Path, data: Path, findings: Findings) -> list[str]:
    """Put a cache right.

    Args:
        cache: The folder.
        data: The folder that it was built from.
        findings: What is damaged.

    Returns:
        Files that were restored or removed, relative to the cache.

    Raises:
        UsageError: The cache does not say how it was made, or the data is not what it was made from.
        ProblemFoundError: What was built again is not what the manifest speaks of; the cache is as it was.
    """
    manifest = findings.manifest
    # The manifest has a checksum, build.json has none.
    identity = read_identity(cache) if manifest is None else _identity(manifest)
    if identity is None:
        raise UsageError(f"{cache} no longer says how it was made; build it again with --force")
    config, policy = _as_it_was_built(cache, data, identity)
    with building(cache, None):
        if manifest is None:
            # Nothing vouches for splits.csv either: the better of two plans is the one that the shards agree with.
            plans = [make_plan(config, policy, known=known) for known in (read_splits(cache), {})]
            plan = min(plans, key=lambda plan: len(missing_shards(cache, plan.recipe, plan.tasks, 0)))
            return _restore_all(cache, config, plan, identity)
        plan = _plan_again(cache, config, policy, findings)
        _refuse_other_sources(manifest, plan, data)
        return _restore(cache, config, plan, findings)


def _identity(manifest: Manifest) -> Identity:
    return Identity(manifest.recipe, manifest.classes, manifest.made_with)


def _progress(tasks: Sequence[ShardTask]) -> ProgressMeter:
    return ProgressMeter("repair", sum(len(task.files) for task in tasks), "sources")


def _as_it_was_built(cache: Path, data: Path, identity: Identity) -> tuple[BuildConfig, PolicyFile]:
    """The options and the policy of the build."""
    recipe: dict[str, Any] = identity.recipe
    try:
        engine, _, device = recipe["engine"].partition("-")
        config = BuildConfig(
            data=data,
            out=cache,
            size=recipe["size"],
            fit=recipe["fit"],
            encoding=recipe["encoding"],
            quality=recipe["quality"] or BuildConfig.quality,
            copies=recipe["copies"],
            seed=recipe["seed"],
            val=recipe["split"]["val"],
            test=recipe["split"]["test"],
            split_seed=recipe["split"]["seed"],
            engine=engine,
            device=device or "cpu",
            shard_mib=recipe["shard_mib"],
            allow_empty_classes=True,
        )
        return config, PolicyFile(policy_from_dict(recipe["policy"]), recipe["class_copies"])
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{cache} says of itself what no build says ({error}); build it again with --force") from error


def _plan_again(cache: Path, config: BuildConfig, policy: PolicyFile, findings: Findings) -> Plan:
    """The plan of the build, even where the file that says which source went to which split is damaged."""
    manifest = findings.manifest
    assert manifest is not None
    if SPLITS_NAME not in {damage.file for damage in findings.damage}:
        return make_plan(config, policy, known=read_splits(cache))
    # Where all was cut in one go, cutting again gives the same; otherwise shards that are whole know their sources.
    plan = make_plan(config, policy, known={})
    with _aside(cache) as folder:
        write_splits(folder, plan.tasks)
        if file_sha256(folder / SPLITS_NAME) == manifest.files[SPLITS_NAME]:
            return plan
    return make_plan(config, policy, known=_splits_of_rows(cache, findings, manifest))


def _splits_of_rows(cache: Path, findings: Findings, manifest: Manifest) -> dict[str, str]:
    """File → split, from the rows of the shards."""
    hurt = {damage.file for damage in findings.damage}
    known: dict[str, str] = {}
    for split, entry in manifest.splits.items():
        for name in (shard.file for shard in entry.shards if shard.file not in hurt):
            shard = Shard(cache / name, manifest.recipe["encoding"], manifest.size)
            known.update(dict.fromkeys((shard.row(row).source for row in range(shard.rows)), split))
            metadata = read_metadata(cache / name) or {}
            known.update(dict.fromkeys((reject[0] for reject in metadata.get("rejected", [])), split))
    return known


def _refuse_other_sources(manifest: Manifest, plan: Plan, data: Path) -> None:
    if set(manifest.shards) != {task.file for task in plan.tasks} or manifest.classes != plan.recipe.classes:
        raise UsageError(
            f"{data} is not what the cache was built from: it has other files or classes; give that folder, or bring "
            "the cache up to date with python -m augment_cache.build"
        )


def _restore(cache: Path, config: BuildConfig, plan: Plan, findings: Findings) -> list[str]:
    manifest = findings.manifest
    assert manifest is not None
    hurt = {damage.file for damage in findings.damage}
    tasks = [task for task in plan.tasks if task.file in hurt]
    with _aside(cache) as aside:
        with _progress(tasks) as progress:
            build_shards(plan.recipe, tasks, aside, make_workers(config, tasks), progress.advance, Claim())
        beside = sorted(hurt & set(manifest.files))
        wanted = {name: entry.sha256 for name, entry in manifest.shards.items()} | manifest.files
        _write_beside(cache, aside, plan, manifest, hurt, beside)
        restored = [*(task.file for task in tasks), *beside]
        for name in restored:
            if file_sha256(aside / name) != wanted[name]:
                raise ProblemFoundError(_why_different(aside, name, manifest, plan, config.data))
        if MANIFEST_NAME in hurt:
            manifest.write(aside)
            restored.append(MANIFEST_NAME)
        _move(aside, cache, restored)
    return restored + _remove_unlisted(cache, sorted(hurt - set(restored)))


def _restore_all(cache: Path, config: BuildConfig, plan: Plan, identity: Identity) -> list[str]:
    """Without the manifest nothing says what the files were: build all of them, and keep those that are the same.

    Not by going on with the build: that would take other sources or libraries for news, and the cache would be gone.
    """
    versions = _other_versions(identity.made_with, plan)
    if versions:
        raise ProblemFoundError(f"{cache} cannot come out as it was: {versions}; {CURE}")
    with _aside(cache) as aside:
        with _progress(plan.tasks) as progress:
            manifest = carry_out(replace(config, out=aside), plan, progress.advance).manifest
        assert manifest is not None
        there = [path.relative_to(cache).as_posix() for path in sorted(cache.glob("*/*.arrow"))]
        for name in there:
            _refuse_other_shard(cache, name, manifest, config.data)
        names = [*manifest.shards, *manifest.files, MANIFEST_NAME]
        restored = [name for name in names if not _is_same(aside / name, cache / name)]
        _move(aside, cache, restored)
    return restored + _remove_unlisted(cache, [name for name in there if name not in manifest.shards])


def _refuse_other_shard(cache: Path, name: str, manifest: Manifest, data: Path) -> None:
    found = (read_metadata(cache / name) or {}).get("fingerprint")
    entry = manifest.shards.get(name)
    if found is not None and (entry is None or entry.fingerprint != found):
        raise ProblemFoundError(f"{name} was not built from what is in {data} now; give the right folder, or {CURE}")


def _is_same(first: Path, second: Path) -> bool:
    return second.is_file() and file_sha256(first) == file_sha256(second)


@contextmanager
def _aside(cache: Path) -> Iterator[Path]:
    """A folder on the disk of the cache, so that moving is renaming; gone again whatever happens."""
    cache = cache.resolve()
    where = cache.parent if os.access(cache.parent, os.W_OK) and not cache.is_mount() else cache
    prefix = f".{cache.name}.repair-"
    for left in where.glob(f"{glob.escape(prefix)}*"):  # by a repair that was killed: we hold the cache
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=where) as folder:
        yield Path(folder)


def _move(aside: Path, cache: Path, names: Sequence[str]) -> None:
    for name in names:
        (cache / name).parent.mkdir(exist_ok=True)
        (aside / name).replace(cache / name)


def _remove_unlisted(cache: Path, names: Sequence[str]) -> list[str]:
    """Remove shards that are none of the cache's; other files may be somebody's."""
    unlisted = [name for name in names if SHARD_NAME.search(Path(name).name)]
    for name in unlisted:
        (cache / name).unlink()
    return unlisted


def _write_beside(
    cache: Path, aside: Path, plan: Plan, manifest: Manifest, hurt: set[str], beside: Sequence[str]
) -> None:
    """Write again those of the files beside the shards that are damaged."""
    if BUILD_NAME in beside:
        _identity(manifest).write(aside)
    if SPLITS_NAME in beside:
        write_splits(aside, plan.tasks)
    if REJECTED_NAME in beside:
        found = {name: read_metadata((aside if name in hurt else cache) / name) or {} for name in manifest.shards}
        write_rejected(aside, {name: metadata.get("rejected", []) for name, metadata in found.items()})


def _why_different(aside: Path, name: str, manifest: Manifest, plan: Plan, data: Path) -> str:
    """Why a file that was built again is another one, in words."""
    if name in manifest.shards:
        found = (read_metadata(aside / name) or {}).get("fingerprint")
        if found != manifest.shards[name].fingerprint:
            return f"the sources of {name} in {data} have changed since the cache was built; {CURE}"
    versions = _other_versions(manifest.made_with, plan)
    return f"{name} came out differently ({versions or 'with the same libraries'}); {CURE}"


def _other_versions(made_with: dict[str, str], plan: Plan) -> str:
    now = plan.recipe.made_with
    return ", ".join(
        f"{library} {version} then, {now.get(library)} now"
        for library, version in sorted(made_with.items())
        if now.get(library) != version
    )
