"""From the data options of a run to its loaders."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from augment_cache.format.manifest import MANIFEST_NAME, read_manifest
from augment_cache.format.policy import load_policy
from augment_cache.opening.sources import open_sources
from pipelines.console.cores import usable_cores
from pipelines.datasets import SplitOptions
from pipelines.engines.base import RenderSpec
from pipelines.engines.choose import DeviceName, EngineName, make_engine
from pipelines.errors import UsageError
from pipelines.fit import Fit
from pipelines.loader import Loader, LoaderOptions
from pipelines.opening import OpenOptions, open_with, wanted_splits
from pipelines.plan import View
from pipelines.resident import ResidentOptions, make_resident
from pipelines.sources import SPLITS, Joined, Source, Subset
from pipelines.tensors import TensorFormat
from training.engine.config import DataConfig, RunConfig
from training.engine.groups import find_photos, fold_of_rows, read_photos
from training.model.card import ModelCard

FOLDER_SIZE = 64
LEARNED_SPLITS = {"train": ("train",), "train+val": ("train", "val"), "all": SPLITS}
"""What --data.train_on learns from."""


@dataclass(frozen=True)
class Process:
    """Which of how many processes this is.

    Attributes:
        rank: Number of this process.
        world: Number of processes.
        local_world: Number of processes on this machine.
        gpu: It works on a GPU.
    """

    rank: int = 0
    world: int = 1
    local_world: int = 1
    gpu: bool = False

    @property
    def device(self) -> DeviceName:
        """Where an engine should leave the pixels."""
        return "gpu" if self.gpu else "cpu"

    def threads(self, asked: int) -> int:
        """CPU threads: as asked, or a fair share of the cores."""
        if asked:
            return asked
        own = os.environ.get("SLURM_CPUS_PER_TASK", "")
        if "SLURM_PROCID" in os.environ and own.isdecimal():  # srun has divided the cores already
            return max(1, min(int(own), usable_cores()))
        return max(1, usable_cores() // self.local_world)


def _local_world(world: int) -> int:
    """Processes on this machine: as the launcher says, or Slurm (`4` or `4(x2)`)."""
    for name in ("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE", "SLURM_STEP_TASKS_PER_NODE"):
        count = os.environ.get(name, "").partition("(")[0]
        if count.isdecimal() and int(count):
            return min(int(count), world)
    return 1


def process_of(accelerator: Any) -> Process:  # noqa: ANN401 - accelerate.Accelerator, which has no types
    """The place of this process among all of an Accelerate launch."""
    return Process(
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        local_world=_local_world(accelerator.num_processes),
        gpu=accelerator.device.type == "cuda",
    )


def open_data(path: Path, splits: tuple[str, ...], options: OpenOptions) -> list[Source]:
    """Open splits of a cache, of a folder of images, or of annotated photos.

    Args:
        path: A cache, a folder of crops, a folder of class folders, or photos with annotations.json.
        splits: Names of the splits.
        options: How to read them.

    Raises:
        UsageError: It is nothing of the kind, or has no such split.
    """
    return wanted_splits(path, open_with(path, replace(options, splits=splits), [open_sources]), splits)


def image_shape(path: Path, size: int | None) -> tuple[int, Fit]:
    """(side in px, fit) of the images that a run sees: as asked, or as the cache has them."""
    if (path / MANIFEST_NAME).is_file():
        recipe = read_manifest(path).recipe
        return size or int(recipe["size"]), recipe["fit"]
    return size or FOLDER_SIZE, "pad"


def open_options(config: DataConfig) -> OpenOptions:
    """The part of the options that opening needs."""
    return OpenOptions(
        split=SplitOptions(config.val, config.test, config.split_seed),
        copies=config.copies,
        allow_empty_classes=config.allow_empty_classes,
        check=config.check == "rows",
    )


def trained_split(
    card: ModelCard, val: float | None = None, test: float | None = None, seed: int | None = None
) -> SplitOptions:
    """How a folder of class folders is cut: as asked, else as in training, or test images would be training images.

    Args:
        card: Of the model.
        val: Share for validation; None for that of training.
        test: Share for the test, likewise.
        seed: Likewise.
    """
    trained, standard = card.provenance.get("split", {}), SplitOptions()
    return SplitOptions(
        val=trained.get("val", standard.val) if val is None else val,
        test=trained.get("test", standard.test) if test is None else test,
        seed=trained.get("split_seed", standard.seed) if seed is None else seed,
    )


def told_split(config: DataConfig) -> dict[str, Any]:
    """How the data is cut, for the card: a cache was cut when it was built, whatever the options say now."""
    if (config.path / MANIFEST_NAME).is_file():
        built = read_manifest(config.path).recipe.get("split", {})
        return {"val": built.get("val"), "test": built.get("test"), "split_seed": built.get("seed")}
    return {"val": config.val, "test": config.test, "split_seed": config.split_seed}


def training_sources(config: DataConfig) -> tuple[Source, Source | None]:
    """What to learn from, and what to validate on: None where everything is learned from.

    Raises:
        UsageError: The data cannot be used with these options.
    """
    if config.folds:
        return _fold(config)
    names = ("train", "val") if config.train_on == "train" else LEARNED_SPLITS[config.train_on]
    sources = open_data(config.path, names, open_options(config))
    if any(source.classes != sources[0].classes for source in sources):
        raise UsageError(f"{config.path}: its splits have different classes; build the cache again")
    return (sources[0], sources[1]) if config.train_on == "train" else (Joined(sources), None)


def _fold(config: DataConfig) -> tuple[Source, Source]:
    """Everything but one part of train and val, and that part: of it no augmented copies."""
    parts = open_data(config.path, ("train", "val"), open_options(config))
    photos = read_photos(find_photos(config.path, config.groups))
    folds, original = fold_of_rows(parts, photos, folds=config.folds, seed=config.split_seed)
    held = folds == (config.fold or 0)
    both = Joined(parts)
    if held.all() or not (held & original).any():
        raise UsageError(f"{config.path} has too few photos for --data.folds {config.folds}; take fewer folds")
    return Subset(both, np.flatnonzero(~held)), Subset(both, np.flatnonzero(held & original))


def make_loaders(
    config: RunConfig, process: Process, sources: tuple[Source, Source | None], spec: RenderSpec, format: TensorFormat
) -> tuple[Loader, Loader | None]:
    """Loaders of what to learn from and what to validate on. They share an engine, which is the caller's to close.

    Args:
        config: Options of the run.
        process: Its place among the others.
        sources: From `training_sources`.
        spec: Size and fit of the images.
        format: What the network wants.

    Raises:
        UsageError: The data cannot be used with these options.
    """
    data = config.data
    policy = load_policy(data.augment) if data.augment else None
    view = View(flip=data.flip, min_area=data.min_area)
    resident = ResidentOptions(mode=data.resident, share=data.resident_share, processes=process.local_world)
    engine = make_engine(data.engine, spec, device=process.device, threads=process.threads(data.threads))
    evaluation = LoaderOptions(
        batch_size=data.batch_size,
        train=False,
        seed=config.seed,
        damaged=data.damaged,
        rank=process.rank,
        world=process.world,
    )
    try:
        training = replace(
            evaluation,
            train=True,
            batch_size=data.batch_size // config.accumulate,
            order=data.order,
            view=view,
            policy=policy,
            repeat=data.views,
            mix=config.mix,
        )
        here = [source for source in sources if source is not None]
        here = make_resident(here, engine, view=view, plain=policy is None, options=resident, show=process.rank == 0)
        # Levels travel to the network's device, but what is mixed has to be numbers.
        train = Loader(here[0], engine, training, format if training.mix.active else TensorFormat())
        if len(train) < config.accumulate:
            raise ValueError(f"batch size {data.batch_size} is larger than the {len(here[0].labels)} samples")
        return train, Loader(here[1], engine, evaluation) if len(here) > 1 else None
    except ValueError as error:
        engine.close()
        raise UsageError(f"{data.path}: {error}; change --data.batch_size") from error
    except BaseException:
        engine.close()
        raise


def make_test_loader(
    source: Source, process: Process, *, spec: RenderSpec, engine: EngineName, batch_size: int
) -> Loader:
    """A loader that sees every sample once, over all processes together. Its engine is the caller's to close."""
    rendering = make_engine(engine, spec, device=process.device, threads=process.threads(0))
    evaluation = LoaderOptions(batch_size=batch_size, train=False, rank=process.rank, world=process.world)
    return Loader(source, rendering, evaluation)
