"""From the data options of a run to its loaders."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from augment_cache.format.manifest import MANIFEST_NAME, read_manifest
from augment_cache.format.policy import load_policy
from augment_cache.format.source import CacheSource
from pipelines.datasets import SplitOptions, open_splits
from pipelines.engines.base import Engine, RenderSpec
from pipelines.engines.choose import DeviceName, EngineName, make_engine
from pipelines.engines.cpu import usable_cores
from pipelines.errors import UsageError
from pipelines.fit import Fit
from pipelines.loader import Loader, LoaderOptions
from pipelines.plan import View
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
        """CPU threads for the loader: as asked, or a fair share of the cores."""
        return asked or max(1, usable_cores() // self.local_world)


def process_of(accelerator: Any) -> Process:  # noqa: ANN401 - accelerate.Accelerator, which has no types
    """The place of this process among all of an Accelerate launch."""
    return Process(
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        local_world=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        gpu=accelerator.device.type == "cuda",
    )


def open_split(path: Path, split: str, options: SplitOptions, *, copies: int | None = None) -> Source:
    """Open one split of a cache or of a folder.

    Raises:
        UsageError: Neither a cache nor a folder of images, or no such split.
    """
    if (path / MANIFEST_NAME).is_file():
        return CacheSource(path, split, copies=copies)
    if not path.exists():
        raise UsageError(f"{path} does not exist; give a cache (from augment_cache.build) or a folder of images")
    sources = open_splits(path, options)
    if split not in sources:
        raise UsageError(f"{path} has no split {split!r}; it has {', '.join(sources)}")
    return sources[split]


def image_shape(path: Path, size: int | None) -> tuple[int, Fit]:
    """(side in px, fit) of the images that a run sees: as asked, or as the cache has them."""
    if (path / MANIFEST_NAME).is_file():
        recipe = read_manifest(path).recipe
        return size or int(recipe["size"]), recipe["fit"]
    return size or FOLDER_SIZE, "pad"


def make_loaders(config: DataConfig, process: Process, seed: int) -> tuple[Loader, Loader, Engine]:
    """Loaders of the train and val splits, and the engine that both use.

    Raises:
        UsageError: The data cannot be used with these options.
    """
    options = SplitOptions(config.val, config.test, config.split_seed)
    train = open_split(config.path, "train", options, copies=config.copies)
    val = open_split(config.path, "val", options)
    size, fit = image_shape(config.path, config.size)
    engine = make_engine(
        config.engine, RenderSpec(size, fit), device=process.device, threads=process.threads(config.threads)
    )
    policy = load_policy(config.augment) if config.augment else None
    view = View(flip=config.flip, min_area=config.min_area)
    try:
        evaluation = LoaderOptions(
            batch_size=config.batch_size, train=False, seed=seed, rank=process.rank, world=process.world
        )
        training = replace(evaluation, train=True, view=view, policy=policy)
        return Loader(train, engine, training), Loader(val, engine, evaluation), engine
    except ValueError as error:
        engine.close()
        raise UsageError(f"{config.path}: {error}") from error


def make_test_loader(
    path: Path,
    split: str,
    options: SplitOptions,
    process: Process,
    *,
    spec: RenderSpec,
    engine: EngineName,
    batch_size: int,
) -> Loader:
    """A loader that sees every original of a split exactly once, over all processes together."""
    source = open_split(path, split, options, copies=0)
    rendering = make_engine(engine, spec, device=process.device, threads=process.threads(0))
    evaluation = LoaderOptions(batch_size=batch_size, train=False, rank=process.rank, world=process.world)
    return Loader(source, rendering, evaluation)
