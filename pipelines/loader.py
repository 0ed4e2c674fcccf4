"""Batches of tensors from any source: order and plan decide, an engine renders, ranks share."""

import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines import order
from pipelines.augmentations import Policy
from pipelines.engines.base import Engine, Job, Rendered
from pipelines.errors import CorruptSampleError, UsageError
from pipelines.mix import NO_MIX, Mix, MixOptions, draw_mix, mixed
from pipelines.plan import PLAIN_VIEW, Stage, View, draw
from pipelines.sources import Source
from pipelines.stats import LoaderStats
from pipelines.tensors import TensorFormat, on_device

OrderName = Literal["sequential", "shuffled", "balanced"]
STEPS_PER_DRAW = 64
"""Batches whose plan is drawn at once: many small draws would cost more than all else together."""


class Batch(NamedTuple):
    """What a rank gets in one step.

    Attributes:
        images: [k, 3, size, size] on the engine's device, as the loader's format says.
        labels: int64 [k], on the same device.
        rows: int64 [k], positions in the source, on the CPU.
        real: How many of the k samples count, from the front. Fewer than k only where a rank has nothing left to do but
            must keep step with the others: in the last step of an evaluation, or when all its samples were skipped.
        mix: How pairs of images were mixed; their targets have to be mixed likewise, see `pipelines.mix.Mix`.
    """

    images: torch.Tensor
    labels: torch.Tensor
    rows: NDArray[np.int64]
    real: int
    mix: Mix | None = None


class Skipped(NamedTuple):
    """A sample that was left out."""

    row: int
    where: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class LoaderOptions:
    """How a source is read.

    Attributes:
        batch_size: Size of the *global* batch: that of all ranks together.
        train: Shuffle, and leave out the incomplete batch at the end. Otherwise the source's order, every sample once.
        order: Another order than the one that `train` stands for: `balanced` draws every class equally often.
        seed: Of order and plan.
        view: Random flip and crop.
        policy: Online augmentation, drawn anew in each epoch; None for none.
        repeat: After so many epochs, flips, crops and online augmentation come again; 0 for never. The order of the
            samples, and how batches are mixed, does not.
        mix: Mixup and CutMix.
        damaged: `raise` stops at a sample that cannot be read; `skip` leaves it out of its batch and goes on, see
            `Loader.skipped`.
        rank: This process.
        world: Number of processes.
    """

    batch_size: int
    train: bool
    order: OrderName | None = None
    seed: int = 0
    view: View = PLAIN_VIEW
    policy: Policy | None = None
    repeat: int = 0
    mix: MixOptions = NO_MIX
    damaged: Literal["raise", "skip"] = "raise"
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise ValueError(f"rank {self.rank} does not exist among {self.world} processes")
        if self.train and self.batch_size < self.world * self.unit:
            pairs = " in pairs" if self.unit == 2 else ""
            raise ValueError(
                f"batch_size {self.batch_size} is too small for {self.world} processes that share it{pairs}"
            )

    @property
    def unit(self) -> int:
        """Samples of a batch that no cut between ranks may part."""
        return 2 if self.mix.active else 1

    def round_of(self, epoch: int) -> int:
        """Which draw of flips, crops and online augmentation an epoch shows."""
        return epoch % self.repeat if self.repeat else epoch

    @property
    def order_name(self) -> OrderName:
        """The order that these options stand for."""
        return self.order or ("shuffled" if self.train else "sequential")

    def rows(self, labels: NDArray[np.int64], classes: int, epoch: int) -> NDArray[np.int64]:
        """The order of an epoch: int64, positions in the source."""
        if self.order_name == "shuffled":
            return order.shuffled(len(labels), seed=self.seed, epoch=epoch)
        if self.order_name == "balanced":
            return order.balanced(labels, classes, seed=self.seed, epoch=epoch)
        return np.arange(len(labels), dtype=np.int64)


@dataclass
class Loader:
    """Iterates over the batches of one epoch at a time.

    An iterator may be dropped at any time: nothing is left behind. Several may be under way at once.

    Attributes:
        source: Where samples come from.
        engine: Renders them; stays the caller's to close.
        options: How to read.
        format: What the images are turned into.
        epoch: The epoch that the next iteration runs through; `set_epoch` moves it.
        skipped: Samples that were left out so far.
        stats: Where the time went.

    Raises:
        ValueError: There would be no batch.
    """

    source: Source
    engine: Engine
    options: LoaderOptions
    format: TensorFormat = field(default_factory=TensorFormat)
    epoch: int = field(default=0, init=False)
    skipped: list[Skipped] = field(default_factory=list, init=False)
    stats: LoaderStats = field(default_factory=LoaderStats, init=False)
    _position: int = field(default=0, init=False)
    """Samples of the epoch, of all ranks together, that have been handed out."""
    _start: int = field(default=0, init=False)
    """Where the next iteration begins."""

    def __post_init__(self) -> None:
        self._steps = self._steps_from(0)
        if self.options.mix.active and self.format.dtype == "uint8":
            raise ValueError("levels cannot be mixed: mixup and CutMix need a float format")

    def _steps_from(self, position: int) -> int:
        left = len(self.source.labels) - position
        options = self.options
        if position and left < (options.batch_size if options.train else 1):
            return 0
        return order.steps_per_epoch(left, options.batch_size, drop_last=options.train)

    def __len__(self) -> int:
        """Steps in a whole epoch, the same on every rank."""
        return self._steps

    @property
    def steps_left(self) -> int:
        """Steps of the next iteration: fewer than a whole epoch after `load_state_dict`."""
        return self._steps_from(self._start)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch: order, flips, crops and online augmentation are functions of it."""
        if epoch != self.epoch:
            self._start = self._position = 0
        self.epoch = int(epoch)

    def state_dict(self) -> dict[str, int]:
        """Where the loader is, in five integers, the same on every rank: behind the batches handed out so far.

        Keys: `epoch`; `position`, samples of all ranks together; `seed`; `samples` of an epoch; `order`, as a number.
        """
        return {
            "epoch": self.epoch,
            "position": self._position,
            "seed": self.options.seed,
            "samples": len(self.source.labels),
            "order": get_args(OrderName).index(self.options.order_name),
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where a loader stood that had the same source, seed and order, whatever its ranks and batch size.

        Raises:
            UsageError: It had another seed, order or number of samples, or this is no such state.
        """
        here = self.state_dict()
        missing = sorted(set(here) - set(state))
        if missing:
            raise UsageError(f"the saved position lacks {missing[0]!r}; start the epoch anew")
        same = (("seed", "another seed"), ("samples", "a data set of another size"), ("order", "another order"))
        for name, what in same:
            if state[name] != here[name]:
                raise UsageError(
                    f"the saved position is in {what} ({state[name]} there, {here[name]} here); start the epoch anew"
                )
        if not (0 <= state["epoch"] < 2**32 and 0 <= state["position"] <= here["samples"]):
            raise UsageError(
                f"the saved position {state['position']} in epoch {state['epoch']} does not exist; start the epoch anew"
            )
        self.epoch, self._position = int(state["epoch"]), int(state["position"])
        self._start = self._position

    def __iter__(self) -> Iterator[Batch]:
        """The batches of the current epoch that are left.

        Raises:
            CorruptSampleError: A sample cannot be decoded; names it.
        """
        epoch, start, self._start = self.epoch, self._start, 0
        self._position = start
        listed: set[int] = set()
        with closing(self.engine.stream(self._jobs(epoch, start))) as results:  # type: ignore[type-var]
            while True:
                asked = time.perf_counter()
                rendered = next(results, None)
                wait = time.perf_counter() - asked
                if rendered is None:
                    return
                step: _Step = rendered.tag
                batch = self._batch(rendered, step, listed)
                self.stats.add(rendered, batch.real, wait)
                if epoch == self.epoch:  # an iteration may outlive its epoch
                    self._position = step.end
                yield batch

    def _jobs(self, epoch: int, start: int) -> Iterator[Job]:
        options, size = self.options, self.options.batch_size
        rows, ids = self._order(epoch)
        begins = [start + step * size for step in range(self._steps_from(start))]
        for first in range(0, len(begins), STEPS_PER_DRAW):
            steps = [self._step(epoch, begin, len(rows)) for begin in begins[first : first + STEPS_PER_DRAW]]
            plan = draw(
                options.policy,
                ids[np.concatenate([step.positions for step in steps])],
                seed=options.seed,
                stage=Stage.LOAD,
                rounds=(options.round_of(epoch),),
                view=options.view,
            )
            done = 0
            for step in steps:
                part = plan.take(slice(done, done + len(step.positions)))
                done += len(step.positions)
                images = self.source.fetch(rows[step.positions])
                yield Job(images, part, checked=self.source.checked, tag=replace(step, rows=rows[step.positions]))

    def _order(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """The rows of the epoch, and what the plan of each is keyed by."""
        rows = self.options.rows(self.source.labels, len(self.source.classes), epoch)
        ids = self.source.ids[rows]
        if self.options.order_name == "balanced":  # a sample that comes again gets another augmentation
            ids = ids ^ (order.occurrences(rows).astype(np.uint64) * np.uint64(_AGAIN))
        return rows, ids

    def _step(self, epoch: int, begin: int, length: int) -> "_Step":
        options = self.options
        end = min(begin + options.batch_size, length)
        share = order.share(
            np.arange(begin, end, dtype=np.int64), rank=options.rank, world=options.world, unit=options.unit
        )
        return _Step(share.rows, share.real, epoch, begin, end)

    def _batch(self, rendered: Rendered, step: "_Step", listed: set[int]) -> Batch:
        pixels, rows, real = rendered.pixels[0], step.rows, step.real
        places = whole = np.arange(len(rows))
        if rendered.errors:
            self._report(rows[:real], rendered.errors, listed)
            whole = np.setdiff1d(places, list(rendered.errors))
            real = int(np.count_nonzero(whole < real))
            # What counts comes first; in training two images stay, for batch normalisation has no statistics of one.
            least = min(2 if self.options.train else 1, len(places))
            places = np.concatenate([whole, np.setdiff1d(places, whole)[: max(least - len(whole), 0)]])
            pixels, rows = pixels[on_device(places, pixels.device)], rows[places]
        images = self.format(pixels.permute(0, 3, 1, 2))
        mix = None
        if self.options.mix.active:
            size = self.engine.spec.size
            mix = draw_mix(self.options.mix, whole, size, seed=self.options.seed, epoch=step.epoch, number=step.begin)
            alone = np.arange(len(whole), len(places))  # nobody's partner
            mix = mix._replace(partners=np.concatenate([mix.partners, alone]))
            images = mixed(images, mix)
        labels = on_device(self.source.labels[rows], pixels.device)
        return Batch(images, labels, rows, real, mix)

    def _report(self, rows: NDArray[np.int64], errors: Mapping[int, str], listed: set[int]) -> None:
        """Stop at a damaged sample, or list it, unless this iteration has done so already."""
        for place, reason in sorted(errors.items()):
            if place >= len(rows):  # another rank's sample, rendered only to keep step
                continue
            row = int(rows[place])
            self.stats.skipped += 1
            if row in listed:
                continue
            listed.add(row)
            where = self.source.describe(row)
            if self.options.damaged == "raise":
                raise CorruptSampleError(reason if "; " in reason else f"{where}: {reason}; {CURE}")
            self.skipped.append(Skipped(row, where, reason))


CURE = "remove it, or build a cache, which leaves such files out"
_AGAIN = 0xD1B54A32D192ED03
"""An odd number without a pattern, other than the one that tells copies apart."""


@dataclass(frozen=True)
class _Step:
    """Which part of an epoch a job is: samples `begin` … `end` - 1 of all ranks together.

    Attributes:
        positions: int64 [k]; which of them are this rank's.
        real: See `Batch`.
        epoch: The epoch.
        begin: First sample of all ranks.
        end: After the last one.
        rows: int64 [k]; positions in the source.
    """

    positions: NDArray[np.int64]
    real: int
    epoch: int
    begin: int
    end: int
    rows: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
