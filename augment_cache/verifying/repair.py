"""Build damaged shards again, aside, and put them in place if they are what the manifest says."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from augment_cache.build import BuildConfig, Plan, carry_out, make_plan, make_workers
from augment_cache.building.folder import REJECTED_NAME, write_rejected
from augment_cache.building.lock import building
from augment_cache.building.run import build_shards
from augment_cache.building.shard_plan import ShardTask
from augment_cache.building.state import BUILD_NAME, SPLITS_NAME, Identity, read_identity, write_splits
from augment_cache.format.manifest import MANIFEST_NAME, SHARD_NAME, Manifest, file_sha256
from augment_cache.format.policy import PolicyFile, policy_from_dict
from augment_cache.format.shards import Shard, read_metadata
from augment_cache.verifying.check import Findings
from pipelines.console.progress import ProgressMeter
from pipelines.errors import ProblemFoundError, UsageError


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
    identity = read_identity(cache)
    if identity is None:
        raise UsageError(f"{cache} no longer says how it was made; build it again with --force")
    config, policy = _as_it_was_built(cache, data, identity)
    with building(cache, None):
        if findings.manifest is None:
            plan = make_plan(config, policy)
            with _progress(plan.tasks) as progress:
                carry_out(config, plan, progress.advance)
            return [MANIFEST_NAME]
        known = _known_splits(cache, findings)
        plan = make_plan(config, policy, known=known)
        _refuse_other_sources(findings.manifest, plan, data)
        return _restore(cache, config, plan, findings)


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


def _known_splits(cache: Path, findings: Findings) -> dict[str, str] | None:
    """File → split, from the rows of the shards, where the file that says so is damaged."""
    manifest = findings.manifest
    assert manifest is not None
    hurt = {damage.file for damage in findings.damage}
    if SPLITS_NAME not in hurt:
        return None
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
    # Beside the cache, so that moving is renaming; gone again whatever happens.
    with tempfile.TemporaryDirectory(prefix=f".{cache.name}.repair-", dir=cache.resolve().parent) as folder:
        aside = Path(folder)
        with _progress(tasks) as progress:
            build_shards(plan.recipe, tasks, aside, make_workers(config, tasks), progress.advance, {})
        beside = sorted(hurt & set(manifest.files))
        wanted = {task.file: manifest.shards[task.file].sha256 for task in tasks} | manifest.files
        _write_beside(cache, aside, plan, manifest, hurt, beside)
        restored = [*(task.file for task in tasks), *beside]
        for name in restored:
            if file_sha256(aside / name) != wanted[name]:
                raise ProblemFoundError(_why_different(aside, name, manifest, plan, config.data))
        for name in restored:
            (cache / name).parent.mkdir(exist_ok=True)
            (aside / name).replace(cache / name)
    unlisted = [name for name in sorted(hurt - set(restored)) if SHARD_NAME.search(Path(name).name)]
    for name in unlisted:
        (cache / name).unlink()
    return restored + unlisted


def _write_beside(
    cache: Path, aside: Path, plan: Plan, manifest: Manifest, hurt: set[str], beside: Sequence[str]
) -> None:
    """Write again those of the files beside the shards that are damaged."""
    if BUILD_NAME in beside:
        Identity(manifest.recipe, manifest.classes, manifest.made_with).write(aside)
    if SPLITS_NAME in beside:
        write_splits(aside, plan.tasks)
    if REJECTED_NAME in beside:
        write_rejected(aside, {name: (aside if name in hurt else cache) / name for name in manifest.shards})


def _why_different(aside: Path, name: str, manifest: Manifest, plan: Plan, data: Path) -> str:
    """Why a file that was built again is another one, in words."""
    cure = "bring the whole cache up to date with python -m augment_cache.build"
    if name in manifest.shards:
        found = (read_metadata(aside / name) or {}).get("fingerprint")
        if found != manifest.shards[name].fingerprint:
            return f"the sources of {name} in {data} have changed since the cache was built; {cure}"
    changed = sorted(
        f"{library} {version} then, {plan.recipe.made_with.get(library)} now"
        for library, version in manifest.made_with.items()
        if plan.recipe.made_with.get(library) != version
    )
    return f"{name} came out differently ({', '.join(changed) or 'with the same libraries'}); {cure}"
