"""From the data options of a run to its loaders."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from augment_cache.format.manifest import MANIFEST_NAME, read_manifest
from augment_cache.format.policy import load_policy
from augment_cache.opening.sources import open_sources
from pipelines.console.cores import usable_cores
from pipelines.datasets import SplitOptions
from pipelines.engines.base import Engine, RenderSpec
from pipelines.engines.choose import DeviceName, EngineName, make_engine
from pipelines.errors import UsageError
from pipelines.fit import Fit
from pipelines.loader import Loader, LoaderOptions
from pipelines.opening import OpenOptions, open_with, wanted_splits
from pipelines.plan import View
from pipelines.resident import ResidentOptions, make_resident
from pipelines.sources import Source
from training.engine.config import DataConfig

FOLDER_SIZE = 64


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
        return asked or max(1, usable_cores() // self.local_world)


def process_of(accelerator: Any) -> Process:  # noqa: ANN401 - accelerate.Accelerator, which has no types
    """The place of this process among all of an Accelerate launch."""
    return Process(
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        local_world=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
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


def make_loaders(config: DataConfig, process: Process, seed: int) -> tuple[Loader, Loader, Engine]:
    """Loaders of the train and val splits, and the engine that both use.

    Raises:
        UsageError: The data cannot be used with these options.
    """
    train, val = open_data(config.path, ("train", "val"), open_options(config))
    policy = load_policy(config.augment) if config.augment else None
    view = View(flip=config.flip, min_area=config.min_area)
    resident = ResidentOptions(mode=config.resident, share=config.resident_share, processes=process.local_world)
    spec = RenderSpec(*image_shape(config.path, config.size))
    engine = make_engine(config.engine, spec, device=process.device, threads=process.threads(config.threads))
    evaluation = LoaderOptions(
        batch_size=config.batch_size,
        train=False,
        seed=seed,
        damaged=config.damaged,
        rank=process.rank,
        world=process.world,
    )
    try:
        training = replace(evaluation, train=True, order=config.order, view=view, policy=policy)
        train, val = make_resident(
            (train, val), engine, view=view, plain=policy is None, options=resident, show=process.rank == 0
        )
        return Loader(train, engine, training), Loader(val, engine, evaluation), engine
    except ValueError as error:
        engine.close()
        raise UsageError(f"{config.path}: {error}; change --data.batch_size") from error
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
