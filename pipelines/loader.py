"""Batches of tensors from any source: order and plan decide, an engine renders, ranks share."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines import order
from pipelines.augmentations import Policy
from pipelines.engines.base import Engine, Job
from pipelines.errors import CorruptSampleError
from pipelines.plan import PLAIN_VIEW, Stage, View, draw
from pipelines.sources import Source


class Batch(NamedTuple):
    """What a rank gets in one step.

    Attributes:
        images: uint8 [k, 3, size, size] in channels-last memory, on the engine's device; see `normalised`.
        labels: int64 [k], on the same device.
        rows: int64 [k], positions in the source, on the CPU.
        real: How many of the k samples count, from the front. Fewer than k only in the last step of an evaluation, on a
            rank that has nothing left to do but must keep step with the others.
    """

    images: torch.Tensor
    labels: torch.Tensor
    rows: NDArray[np.int64]
    real: int


@dataclass(frozen=True, kw_only=True)
class LoaderOptions:
    """How a source is read.

    Attributes:
        batch_size: Size of the *global* batch: that of all ranks together.
        train: Shuffle, and leave out the incomplete batch at the end. Otherwise the source's order, every sample once.
        seed: Of order and plan.
        view: Random flip and crop.
        policy: Online augmentation, drawn anew in each epoch; None for none.
        rank: This process.
        world: Number of processes.
    """

    batch_size: int
    train: bool
    seed: int = 0
    view: View = PLAIN_VIEW
    policy: Policy | None = None
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise ValueError(f"rank {self.rank} does not exist among {self.world} processes")
        if self.train and self.batch_size < self.world:
            raise ValueError(f"batch_size {self.batch_size} is smaller than the {self.world} processes that share it")


@dataclass
class Loader:
    """Iterates over the batches of one epoch at a time.

    Attributes:
        source: Where samples come from.
        engine: Renders them; stays the caller's to close.
        options: How to read.
        epoch: The epoch that the next iteration runs through; `set_epoch` moves it.

    Raises:
        ValueError: There would be no batch.
    """

    source: Source
    engine: Engine
    options: LoaderOptions
    epoch: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._steps = order.steps_per_epoch(
            len(self.source.labels), self.options.batch_size, drop_last=self.options.train
        )

    def __len__(self) -> int:
        """Steps in an epoch, the same on every rank."""
        return self._steps

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch: order, flips, crops and online augmentation are functions of it."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        """The batches of the current epoch.

        Raises:
            CorruptSampleError: A sample cannot be decoded; names it.
        """
        for rendered in self.engine.stream(self._jobs()):
            share: order.Share = rendered.tag
            for position, reason in rendered.errors.items():
                where = self.source.describe(int(share.rows[position]))
                raise CorruptSampleError(f"{where}: {reason}; remove it, or build a cache, which leaves such files out")
            labels = torch.from_numpy(self.source.labels[share.rows]).to(rendered.pixels.device)
            yield Batch(rendered.pixels[0].permute(0, 3, 1, 2), labels, share.rows, share.real)

    def _jobs(self) -> Iterator[Job]:
        options, length, epoch = self.options, len(self.source.labels), self.epoch
        if options.train:
            rows = order.shuffled(length, seed=options.seed, epoch=epoch)
        else:
            rows = np.arange(length, dtype=np.int64)
        for step in range(self._steps):
            share = order.share(rows, step, options.batch_size, rank=options.rank, world=options.world)
            plan = draw(
                options.policy,
                self.source.ids[share.rows],
                seed=options.seed,
                stage=Stage.LOAD,
                rounds=(epoch,),
                view=options.view,
            )
            yield Job(self.source.fetch(share.rows), plan, checked=self.source.checked, tag=share)


def normalised(
    images: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Levels 0 … 255 → (level / 255 - mean) / std.

    Args:
        images: uint8 [n, 3, height, width], any memory format, which is kept.
        mean: Per channel, for levels in [0, 1].
        std: Per channel.
        dtype: Of the result.

    Returns:
        [n, 3, height, width] on the same device.
    """
    scale = torch.tensor([1 / (255 * s) for s in std], device=images.device).view(1, -1, 1, 1)
    offset = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=images.device).view(1, -1, 1, 1)
    return torch.addcmul(offset, images.to(torch.float32), scale).to(dtype)
