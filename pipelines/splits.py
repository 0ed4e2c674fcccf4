"""Which photo goes to training, validation or test: whole groups, every class in proportion, no random generator.

Several crops come from one photo, and a photo that is cut into two splits leaks. So a split is decided per *group*
(the photo), by iterative stratification: take the class that is hardest to place, hand out its groups one by one to the
split that still wants most of that class, go on with the next class.

Source: Sechidis, Tsoumakas, Vlahavas, "On the Stratification of Multi-Label Data", ECML PKDD 2011, algorithm 1. Three
things differ from the paper: what is handed out is a group with a count per class instead of one sample with a set of
labels; the groups with most samples of the class go first, so that small ones even out what large ones upset; and
where the paper draws a lot, a blake2b hash of (seed, group name) decides, so that the result depends on neither the
order of the samples nor on a generator's version.
"""

import math
from collections.abc import Mapping, Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

SUM_TOLERANCE = 1e-6
"""How far the fractions may be from adding up to 1."""

Counts = NDArray[np.int64]
"""int64 [groups, classes]: samples of each class in each group."""


def stratified_split(
    groups: Sequence[str],
    labels: NDArray[np.int64],
    fractions: Mapping[str, float],
    seed: int,
    known: Mapping[str, str] | None = None,
) -> NDArray[np.int64]:
    """Assign every sample to a split; the samples of one group always go to the same one.

    A pure function of the set of (group, label) pairs, the fractions in their order, and the seed. Permuting the
    samples permutes the result and changes nothing else.

    Args:
        groups: Group of each sample, for example the path of its photo. Length n.
        labels: Class of each sample, int64 [n]; any integers.
        fractions: Share of each split, each above 0, together 1: `{"train": 0.7, "val": 0.15, "test": 0.15}`.
        seed: Another seed gives another split.
        known: Group → split of groups that were handed out before: they stay there, the others are handed out so that
            all together come as near to the fractions as may be. Names that are no group or no split are ignored.

    Returns:
        int64 [n]: position of the split in `fractions`. If a class has at least as many groups as there are splits,
        each split gets one of them wherever moving single groups can bring that about.

    Raises:
        ValueError: The fractions are empty, not above 0 or do not add up to 1; or the lengths differ.

    Limits: A split cannot come closer to its share than whole groups allow: one photo with half of all boxes goes
    somewhere. A class with fewer groups than splits is missing from some of them. Exchanging two groups at once is
    not tried. Memory is groups x classes x 8 bytes; time grows with groups x (classes + splits). Pictures that are
    copies of each other under different names are different groups.
    """
    _check(groups, labels, fractions)
    if len(groups) == 0:
        return np.zeros(0, dtype=np.int64)
    names = sorted(set(groups), key=lambda name: (_digest(seed, name), name))  # from here on, rank = place in this list
    rank_of = {name: rank for rank, name in enumerate(names)}
    ranks = np.fromiter((rank_of[name] for name in groups), dtype=np.int64, count=len(groups))
    counts = _count(ranks, labels, len(names))
    shares = np.array(list(fractions.values()), dtype=np.float64)
    places = {name: place for place, name in enumerate(fractions)}
    before = known or {}
    fixed = np.fromiter((places.get(before.get(name, ""), -1) for name in names), dtype=np.int64, count=len(names))
    split_of_group = _hand_out(counts, shares, fixed)
    _repair(counts, shares, split_of_group, movable=fixed < 0)
    return split_of_group[ranks]


def _check(groups: Sequence[str], labels: NDArray[np.int64], fractions: Mapping[str, float]) -> None:
    if labels.shape != (len(groups),):
        raise ValueError(
            f"labels has shape {labels.shape}, but there are {len(groups)} groups; give one label per sample"
        )
    for name, share in fractions.items():
        if not (math.isfinite(share) and share > 0):
            raise ValueError(f"the fraction of {name} is {share}; make it larger than 0 or leave the split out")
    total = math.fsum(fractions.values())
    if abs(total - 1) > SUM_TOLERANCE:
        raise ValueError(f"the fractions of {', '.join(fractions) or 'no split'} add up to {total:g}; make it 1")


def _digest(seed: int, name: str) -> bytes:
    return blake2b(f"{seed}\0{name}".encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _count(ranks: NDArray[np.int64], labels: NDArray[np.int64], group_count: int) -> Counts:
    classes, columns = np.unique(labels, return_inverse=True)
    cells = np.bincount(ranks * len(classes) + columns, minlength=group_count * len(classes))
    return cells.reshape(group_count, len(classes)).astype(np.int64)


def _hand_out(counts: Counts, shares: NDArray[np.float64], fixed: NDArray[np.int64]) -> NDArray[np.int64]:
    """Iterative stratification: int64 [groups], the split of each; `fixed` is the same where it is known, else -1."""
    wanted = shares[:, None] * counts.sum(axis=0)  # float64 [splits, classes]: samples each split still wants
    wanted_in_all = [float(share) * int(counts.sum()) for share in shares]
    sizes = counts.sum(axis=1)
    split_of_group = fixed.copy()
    for split in range(len(shares)):
        wanted[split] -= counts[fixed == split].sum(axis=0)
        wanted_in_all[split] -= int(sizes[fixed == split].sum())
    left = (counts[fixed < 0] > 0).sum(axis=0)  # groups of each class not handed out yet
    while left.any():
        rarest = int(np.where(left > 0, left, np.iinfo(np.int64).max).argmin())
        waiting = np.flatnonzero((split_of_group < 0) & (counts[:, rarest] > 0))
        for group in waiting[np.argsort(-counts[waiting, rarest], kind="stable")]:
            split = _neediest(wanted[:, rarest].tolist(), wanted_in_all, tie=int(group))
            split_of_group[group] = split
            wanted[split] -= counts[group]
            wanted_in_all[split] -= int(sizes[group])
        left -= (counts[waiting] > 0).sum(axis=0)
    return split_of_group


def _neediest(of_class: list[float], of_all: list[float], *, tie: int) -> int:
    """The split that wants most of the class, then most of anything; `tie` picks among equals.

    A group's rank comes from its hash, so rank modulo the number of equals is as good as a lot and favours no split.
    """
    best = max(zip(of_class, of_all, strict=True))
    equal = [split for split, pair in enumerate(zip(of_class, of_all, strict=True)) if pair == best]
    return equal[tie % len(equal)]


def _repair(
    counts: Counts, shares: NDArray[np.float64], split_of_group: NDArray[np.int64], *, movable: NDArray[np.bool_]
) -> None:
    """Give each split a group of every class that has enough of them, by moving single groups; changes its argument.

    Rounding can leave a small split without a rare class: with 5 groups and shares .7 .15 .15 nobody wants a whole
    one. Each move fills a gap and opens none, so the number of moves is at most classes x splits.
    """
    present = counts > 0
    spare = counts * movable[:, None]
    held = np.zeros((len(shares), counts.shape[1]), dtype=np.int64)  # groups of each class in each split
    np.add.at(held, split_of_group, present.astype(np.int64))
    surplus = -shares * counts.sum()  # samples above its share, per split
    np.add.at(surplus, split_of_group, counts.sum(axis=1))
    enough = held.sum(axis=0) >= len(shares)
    for column in np.lexsort((np.arange(len(enough)), held.sum(axis=0))):
        for split in np.flatnonzero(enough[column] & (held[:, column] == 0)):
            group = _group_to_spare(spare, split_of_group, held * enough, surplus, int(column))
            if group is None:
                continue
            donor = split_of_group[group]
            split_of_group[group] = split
            held[donor] -= present[group]
            held[split] += present[group]
            surplus[donor] -= counts[group].sum()
            surplus[split] += counts[group].sum()


def _group_to_spare(
    counts: Counts,
    split_of_group: NDArray[np.int64],
    held: Counts,
    surplus: NDArray[np.float64],
    column: int,
) -> int | None:
    """A group of the class whose split keeps another of each of its classes: smallest, from the fullest split.

    `held` is 0 for classes with fewer groups than splits, which hold nothing back; 1 means this group is the last.
    """
    candidates = np.flatnonzero(counts[:, column] > 0)
    donors = split_of_group[candidates]
    safe = ((counts[candidates] == 0) | (held[donors] != 1)).all(axis=1)
    candidates, donors = candidates[safe], donors[safe]
    if len(candidates) == 0:
        return None
    return int(candidates[np.lexsort((candidates, -surplus[donors], counts[candidates].sum(axis=1)))[0]])
