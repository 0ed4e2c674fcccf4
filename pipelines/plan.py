"""The augmentation plan: a pure function of (seed, copy or epoch, sample id).

Every random decision about a sample is drawn here, from a counter-based generator keyed by those numbers, and handed
to an engine as plain arrays. So the same sample gets the same augmentation whatever the batch size, thread count,
number of ranks or engine, and a cache can write into each row how it was made.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import philox
from pipelines.augmentations import CODES, OPS, Choice, Policy

WHOLE_IMAGE = (0.0, 0.0, 1.0, 1.0)


class Stage(IntEnum):
    """Who draws: numbers of one stage never repeat in another."""

    BUILD = 1
    """Copies in an augmentation cache; the round is the copy number."""
    LOAD = 2
    """Online augmentation; the round is the epoch."""
    ORDER = 3
    """Order of the samples; the round is the epoch."""
    MIX = 4
    """Mixup and CutMix; the round is the epoch."""


class _Block(IntEnum):
    OP = 0x000  # + slot: choice, value, sign, whether
    CENTRE = 0x100  # + slot: x, y
    VIEW = 0x200  # flip, area, aspect, portrait or landscape
    CORNER = 0x201  # x, y


@dataclass(frozen=True)
class Plan:
    """What happens to n samples in each of r rounds. All arrays are read-only by convention.

    Attributes:
        op: int8 [r, n, slots]; codes of `OPS`, 0 for nothing.
        value: float32 [r, n, slots]; signed, in the op's unit.
        centre: float32 [r, n, slots, 2]; (x, y) of the cut-out as shares of the side.
        flip: bool [r, n]; mirrored left to right, after everything else.
        box: float32 [r, n, 4]; (left, top, width, height) of the part that is shown, as shares of the fitted square.
    """

    op: NDArray[np.int8]
    value: NDArray[np.float32]
    centre: NDArray[np.float32]
    flip: NDArray[np.bool_]
    box: NDArray[np.float32]

    @property
    def rounds(self) -> int:
        """Number of versions of each sample."""
        return self.op.shape[0]

    @property
    def samples(self) -> int:
        """Number of samples."""
        return self.op.shape[1]

    @property
    def slots(self) -> int:
        """Number of ops applied one after the other."""
        return self.op.shape[2]

    @property
    def is_plain(self) -> bool:
        """Whether samples are shown as they are, but for flips: no op, no crop."""
        return not self.op.any() and bool((self.box == np.array(WHOLE_IMAGE, np.float32)).all())

    def take(self, samples: slice | NDArray[np.int64]) -> "Plan":
        """The plan of some of the samples."""
        return Plan(
            self.op[:, samples],
            self.value[:, samples],
            self.centre[:, samples],
            self.flip[:, samples],
            self.box[:, samples],
        )


@dataclass(frozen=True)
class View:
    """Random flip and random resized crop.

    Attributes:
        flip: Mirror half of the samples left to right.
        min_area: Smallest share of the square that a random resized crop shows; 1 shows all of it.
        max_aspect: Widest aspect ratio of that crop, and its inverse the tallest; 1 keeps it square.
    """

    flip: bool = False
    min_area: float = 1.0
    max_aspect: float = 4 / 3

    def __post_init__(self) -> None:
        if not 0.0 < self.min_area <= 1.0:
            raise ValueError(f"min_area must be in (0, 1], got {self.min_area}")
        if not self.max_aspect >= 1.0:
            raise ValueError(f"max_aspect must be at least 1, got {self.max_aspect}")


PLAIN_VIEW = View()


def nothing(samples: int, rounds: int = 1) -> Plan:
    """The plan that leaves every sample as it is: the originals of a cache, evaluation."""
    return Plan(
        op=np.zeros((rounds, samples, 0), np.int8),
        value=np.zeros((rounds, samples, 0), np.float32),
        centre=np.zeros((rounds, samples, 0, 2), np.float32),
        flip=np.zeros((rounds, samples), np.bool_),
        box=np.broadcast_to(np.array(WHOLE_IMAGE, np.float32), (rounds, samples, 4)).copy(),
    )


def draw(
    policy: Policy | None,
    ids: NDArray[np.uint64],
    *,
    seed: int,
    stage: Stage,
    rounds: Sequence[int],
    view: View = PLAIN_VIEW,
) -> Plan:
    """Draw the plan of some samples.

    Args:
        policy: The ops to choose from; None for none.
        ids: uint64 [n]; sample ids.
        seed: 0 to 2**64 - 1.
        stage: Who draws.
        rounds: Copy numbers or epochs. In `Stage.BUILD`, round 0 is the original and gets no op.
        view: Random flip and crop.

    Returns:
        A plan whose row (i, j) depends on (policy, view, seed, stage, rounds[i], ids[j]) and on nothing else.

    Raises:
        ValueError: The seed or a round is out of range.
    """
    slots = policy.slots if policy else 0
    n, r = len(ids), len(rounds)
    plan = Plan(
        op=np.zeros((r, n, slots), np.int8),
        value=np.zeros((r, n, slots), np.float32),
        centre=np.zeros((r, n, slots, 2), np.float32),
        flip=np.zeros((r, n), np.bool_),
        box=nothing(n, r).box,
    )
    for index, number in enumerate(rounds):
        if stage == Stage.BUILD and number == 0:
            continue
        source = _Source(seed, ids, stage, number)
        if policy is not None:
            for slot in range(slots):
                _fill_slot(plan, index, slot, policy.turns[slot], source)
        if view.flip or view.min_area < 1.0:
            _fill_view(plan, index, view, source)
    return plan


@dataclass(frozen=True)
class _Source:
    """The random words of one round."""

    seed: int
    ids: NDArray[np.uint64]
    stage: Stage
    round_number: int

    def words(self, block: int) -> NDArray[np.uint64]:
        return philox.words(self.seed, self.ids, self.round_number, (self.stage << 16) | block)


def _fill_slot(plan: Plan, index: int, slot: int, choices: tuple[Choice, ...], source: _Source) -> None:
    words = source.words(_Block.OP + slot)
    choice = philox.below(words[:, 0], len(choices))
    applied = philox.uniform(words[:, 3]) < np.array([c.probability for c in choices])[choice]
    low = np.array([c.low for c in choices])[choice]
    high = np.array([c.high for c in choices])[choice]
    ops = [OPS[CODES[c.op]] for c in choices]
    share = philox.uniform(words[:, 1])
    value = low + share * (high - low)
    value = np.where(np.array([op.whole for op in ops])[choice], np.rint(value), value)
    value = np.where(np.array([op.even for op in ops])[choice], _even_whole(low, high, share), value)
    negated = np.array([op.signed for op in ops])[choice] & (words[:, 2] >= 1 << 31)
    value = np.where(negated, -value, value)
    codes = np.array([CODES[c.op] for c in choices], np.int8)[choice]
    plan.op[index, :, slot] = np.where(applied, codes, 0)
    plan.value[index, :, slot] = np.where(applied, value, 0.0)
    centre = philox.uniform(source.words(_Block.CENTRE + slot)[:, :2])
    cut = applied & (codes == CODES["Cutout"])
    plan.centre[index, :, slot] = np.where(cut[:, None], centre, 0.0)


def _even_whole(low: NDArray[Any], high: NDArray[Any], share: NDArray[Any]) -> NDArray[Any]:
    """The whole numbers from `low` to `high`, both included, each for an equal part of the shares in [0, 1)."""
    least, most = np.rint(np.minimum(low, high)), np.rint(np.maximum(low, high))
    return least + np.floor(share * (most - least + 1.0))


def _fill_view(plan: Plan, index: int, view: View, source: _Source) -> None:
    words = source.words(_Block.VIEW)
    if view.flip:
        plan.flip[index] = words[:, 0] >= 1 << 31
    if view.min_area < 1.0:
        area = 1.0 - philox.uniform(words[:, 1]) * (1.0 - view.min_area)
        # torchvision draws the aspect log-uniformly; exp differs between libraries in the last bit, sqrt never does.
        stretch = 1.0 + philox.uniform(words[:, 2]) * (view.max_aspect - 1.0)
        aspect = np.where(words[:, 3] >= 1 << 31, stretch, 1.0 / stretch)
        width = np.minimum(np.sqrt(area * aspect), 1.0)
        height = np.minimum(np.sqrt(area / aspect), 1.0)
        corner = philox.uniform(source.words(_Block.CORNER))
        plan.box[index] = np.stack((corner[:, 0] * (1 - width), corner[:, 1] * (1 - height), width, height), axis=1)
