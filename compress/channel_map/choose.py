"""Which channels stay: the most important ones that leave groups equal and a multiple of so many per layer."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp

from compress.channel_map.channel_map import ChannelMap
from compress.channel_map.unions import Ids

Scope = Literal["layer", "global"]
_Rules = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
"""Matrix, lower and upper bounds of what it makes of a choice (0 or 1 for each channel)."""
STEPS = 24
"""Of the bisection for a target; a step halves the range of ratios."""


@dataclass(frozen=True, kw_only=True)
class ChoiceOptions:
    """How channels are chosen.

    Attributes:
        scope: `layer` takes the same share from all; `global` ranks all channels together.
        round_to: Channels of a family stay in multiples of this, where it has so many.
        least: Share of the outputs of each layer that stays at least.
    """

    scope: Scope = "layer"
    round_to: int = 1
    least: float = 0.1


class Chooser:
    """Chooses channels of a network by how much each matters.

    Args:
        channels: Of the network.
        scores: How much each channel that can go matters.
        options: How to choose.
    """

    def __init__(self, channels: ChannelMap, scores: Mapping[int, float], options: ChoiceOptions) -> None:
        self.channels, self.scores, self.options = channels, scores, options
        self._problems = _problems(channels, options.least)
        self._found: dict[tuple[int, ...], Ids] = {}

    def keep(self, ratio: float) -> Ids:
        """The channels to keep if that share of them is to go; those that cannot go are not among them.

        Args:
            ratio: 0 to 1. Where groups could not be kept equal, fewer go.

        Returns:
            int64, sorted.
        """
        counts = self._counts(ratio)
        key = tuple(counts)
        if key not in self._found:
            kept = [_best(problem, self.scores, counts) for problem in self._problems]
            self._found[key] = np.sort(np.concatenate(kept)) if kept else np.zeros(0, np.int64)
        return self._found[key]

    def keep_for_macs(self, macs: int) -> Ids | None:
        """The most expensive choice that costs at most so many multiply-accumulates.

        Args:
            macs: As `ChannelMap.macs` counts them.

        Returns:
            int64, sorted; None if there is none.
        """
        best = self.keep(1.0)
        if self.channels.macs(best) > macs:
            return None
        low, high = 0.0, 1.0
        for _ in range(STEPS):
            ratio = (low + high) / 2
            kept = self.keep(ratio)
            if self.channels.macs(kept) > macs:
                low = ratio
            else:
                high = ratio
                best = max(best, kept, key=self.channels.macs)
        return best

    def _counts(self, ratio: float) -> list[int]:
        """How many of each family may stay."""
        families, scores = self.channels.families, self.scores
        if self.options.scope == "layer":
            wanted = [round((1 - ratio) * len(family)) for family in families]
        else:
            ranked = np.sort([scores[channel] for family in families for channel in family.tolist()])
            going = round(ratio * len(ranked))
            limit = ranked[going] if going < len(ranked) else np.inf
            wanted = [sum(scores[channel] >= limit for channel in family.tolist()) for family in families]
        return [_rounded(count, len(family), self.options) for count, family in zip(wanted, families, strict=True)]


def _rounded(count: int, size: int, options: ChoiceOptions) -> int:
    """A multiple of `round_to`; everything if the family is smaller than that, or if nothing is to go."""
    if count >= size:
        return size
    step = options.round_to
    least = -(-int(np.ceil(options.least * size)) // step) * step
    return min(size, max(step, least, count // step * step))


@dataclass(frozen=True, kw_only=True)
class _Problem:
    """Families that hang together by groups.

    Attributes:
        numbers: Of the families.
        families: Their channels.
        rules: What a choice has to hold; None where anything goes.
        parts: How the only family is divided, if there is one division only; None otherwise.
    """

    numbers: tuple[int, ...]
    families: tuple[Ids, ...]
    rules: _Rules | None
    parts: tuple[tuple[int, ...], ...] | None

    @cached_property
    def members(self) -> Ids:
        """The channels of all families."""
        return np.concatenate(self.families)


def _problems(channels: ChannelMap, least: float) -> list[_Problem]:
    home = {channel: number for number, family in enumerate(channels.families) for channel in family.tolist()}
    joined = list(range(len(channels.families)))

    def root(number: int) -> int:
        while joined[number] != number:
            number = joined[number]
        return number

    met, covers = [], []
    for parts in channels.balances:
        mine = sorted({home[channel] for part in parts for channel in part.tolist() if channel in home})
        for other in mine[1:]:
            first, second = sorted((root(mine[0]), root(other)))
            joined[second] = first
        if mine:
            met.append((mine[0], parts))
    for layer in channels.layers.values():
        if layer.kind in ("convolution", "linear") and all(channel in home for channel in layer.outputs.tolist()):
            covers.append((home[int(layer.outputs[0])], layer.outputs))
    whole: dict[int, list[int]] = {}
    for number in range(len(joined)):
        whole.setdefault(root(number), []).append(number)
    return [
        _problem(
            channels,
            tuple(members),
            [parts for first, parts in met if root(first) == key],
            [(ids, max(1, int(np.ceil(least * len(ids))))) for first, ids in covers if root(first) == key],
        )
        for key, members in whole.items()
    ]


def _problem(
    channels: ChannelMap, numbers: tuple[int, ...], balances: list[tuple[Ids, ...]], covers: list[tuple[Ids, int]]
) -> _Problem:
    """What is to be decided together.

    Args:
        channels: Of the network.
        numbers: Of the families.
        balances: What has to stay equal.
        covers: (outputs of a layer, how many of them have to stay).
    """
    families = tuple(channels.families[number] for number in numbers)
    divisions = {tuple(tuple(sorted(part.tolist())) for part in parts) for parts in balances}
    members = set(np.concatenate(families).tolist())
    all_can_go = all(members.issuperset(part) for parts in divisions for part in parts)
    return _Problem(
        numbers=numbers,
        families=families,
        rules=_rules(balances, covers, np.concatenate(families)),
        parts=divisions.pop() if len(families) == len(divisions) == 1 and all_can_go else None,
    )


def _best(problem: _Problem, scores: Mapping[int, float], counts: list[int]) -> Ids:
    """The channels of a problem that stay: the most important ones, if they leave groups equal and no layer empty.

    Where so few of a family cannot, more of it stay: with all of them everything is as it was.
    """
    families, members, rules = problem.families, problem.members, problem.rules
    limits = [counts[number] for number in problem.numbers]
    top = np.concatenate([_top(family, scores, limit) for family, limit in zip(families, limits, strict=True)])
    if rules is None or _holds(rules, np.isin(members, top)):
        return top
    if problem.parts is not None:
        return _of_each_part(problem.parts, rules, members, scores, limits[0])
    values = np.array([scores[channel] for channel in members.tolist()])
    while True:
        found = _program(rules, [np.isin(members, family) for family in families], values, limits)
        if found is not None:
            return members[found]
        if all(limit >= len(family) for limit, family in zip(limits, families, strict=True)):
            return members  # with all of them everything is as it was
        limits = [min(len(family), limit + 1) for family, limit in zip(families, limits, strict=True)]


def _of_each_part(
    parts: tuple[tuple[int, ...], ...], rules: _Rules, members: Ids, scores: Mapping[int, float], limit: int
) -> Ids:
    """The best choice for one family that is divided in one way only: as many of each part."""
    count = max(1, limit // len(parts))
    while True:
        top = np.concatenate([_top(np.unique(part), scores, count) for part in parts])
        if _holds(rules, np.isin(members, top)):
            return top
        count += 1


def _top(family: Ids, scores: Mapping[int, float], count: int) -> Ids:
    """The most important ones; of equal ones the first."""
    values = np.array([scores[channel] for channel in family.tolist()])
    return family[np.argsort(-values, kind="stable")[:count]]


def _rules(balances: list[tuple[Ids, ...]], covers: list[tuple[Ids, int]], members: Ids) -> _Rules | None:
    """Equal groups with a channel each, and no layer empty."""
    place = {channel: number for number, channel in enumerate(members.tolist())}
    rows, low, high = [], [], []
    for parts in balances:
        tallies = [_tally(part, place) for part in parts]
        for (row, fixed), (other, other_fixed) in pairwise(tallies):
            rows.append(row - other)
            low.append(float(other_fixed - fixed))
            high.append(float(other_fixed - fixed))
        row, fixed = tallies[0]
        rows.append(row)
        low.append(1.0 - fixed)
        high.append(np.inf)
    for ids, least in covers:
        rows.append(_tally(ids, place)[0])
        low.append(float(least))
        high.append(np.inf)
    return (np.array(rows), np.array(low), np.array(high)) if rows else None


def _tally(part: Ids, place: Mapping[int, int]) -> tuple[NDArray[np.float64], int]:
    """(how often each channel that can go is in a part, how many of it cannot go)."""
    row, fixed = np.zeros(len(place)), 0
    for channel in part.tolist():
        if channel in place:
            row[place[channel]] += 1
        else:
            fixed += 1
    return row, fixed


def _holds(rules: _Rules, choice: NDArray[np.bool_]) -> bool:
    matrix, low, high = rules
    found = matrix @ choice
    return bool((found >= low).all() and (found <= high).all())


def _program(
    rules: _Rules, families: list[NDArray[np.bool_]], values: NDArray[np.float64], limits: list[int]
) -> NDArray[np.bool_] | None:
    """The most important choice that the rules allow, to within 1 % (an integer program); None if there is none.

    As many stay as the rules allow, up to the limit of each family: one that could stay but does not costs importance.
    """
    matrix, low, high = rules
    gains = values + 1e-3 * max(float(values.mean()), 1e-12)  # a channel of no importance still fills its group
    everything = LinearConstraint(
        np.vstack([matrix, *(family.astype(float) for family in families)]),
        np.concatenate([low, np.ones(len(families))]),
        np.concatenate([high, np.array(limits, float)]),
    )
    found = milp(
        -gains / gains.max(),
        integrality=np.ones(len(gains)),
        bounds=Bounds(0, 1),
        constraints=everything,
        options={"mip_rel_gap": 0.01, "node_limit": 2000},
    )
    return None if found.x is None else np.round(found.x).astype(bool)
