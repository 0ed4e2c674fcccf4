"""Take blocks away, one after the other, and prove that what is left is the network without them."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from compress.blocks.find import Found, Units, bypass, find_units
from compress.blocks.goal import Goal, left_after, macs_without
from compress.blocks.rank import RankBy, Ranked, rank
from compress.press.contract import NoEffectError, Pressed, Proof, Subject, edited, largest_difference, no_effect
from compress.press.samples import Samples
from training.model.edits.remove import removed

PRESS = "layers"
CLAIM = "without the blocks == with the blocks bypassed"

Rank = Callable[[nn.Module, Sequence[str]], list[Ranked]]
"""Orders blocks of a network: what goes first comes first."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which blocks go.

    Attributes:
        removed: In the order in which they go.
        ranking: What the first ranking said of all candidates; empty where they were named.
    """

    removed: tuple[Ranked, ...]
    ranking: tuple[Ranked, ...]


def units_of(subject: Subject, units: Units) -> Found:
    """What can be removed from a model.

    Raises:
        NoEffectError: Nothing.
    """
    found = find_units(subject.model, subject.card.size, units)
    if not found.units:
        raise NoEffectError(no_effect(PRESS, subject, found.skipped))
    return found


def ranker(by: RankBy, samples: Samples | None, pause: Callable[[], None] = lambda: None) -> Rank:
    """`rank` with everything but the network and its blocks."""
    return lambda model, units: rank(by, model, units, samples, pause)


def choose(model: nn.Module, found: Found, goal: Goal, order: Rank, *, rerank: bool) -> Choice:
    """Which blocks go, greedily: the best-ranked one, until the goal is reached.

    Args:
        model: Before; it is left as it is.
        found: What can be removed.
        goal: When to stop.
        order: Ranks.
        rerank: Rank anew what is left after each removal; otherwise the first ranking holds.
    """
    if goal.units is not None:
        return Choice(removed=tuple(Ranked(unit, 0.0) for unit in goal.candidates(found.units)), ranking=())
    left = list(found.units)
    first = ranking = order(model, left)
    gone: list[Ranked] = []
    while left and not goal.reached(len(gone), macs_without(found, [one.unit for one in gone])):
        gone.append(next(one for one in ranking if one.unit in left))
        left = left_after(gone[-1].unit, left)
        if rerank and left:
            smaller = edited(model, tuple(removed(one.unit) for one in gone), PRESS)
            ranking = order(smaller, left)
    return Choice(removed=tuple(gone), ranking=tuple(first))


def remove_units(subject: Subject, units: Sequence[str], found: Found) -> Pressed:
    """Remove blocks; the weights of the others stay.

    Args:
        subject: The model.
        units: In order.
        found: Where they come from.

    Raises:
        ProofError: The network does not run without them.
    """
    edits = tuple(removed(path) for path in units)
    model = edited(subject.model, edits, str(subject.path))
    return Pressed(
        model=model,
        edits=edits,
        proof=prove(model, subject.model, units, subject.card.size),
        changed={path: f"{found.units[path].type_name} removed, {found.units[path].macs:,} MACs" for path in units},
        skipped=found.skipped,
    )


def prove(model: nn.Module, whole: nn.Module, units: Sequence[str], size: int) -> Proof:
    """Hold a network without blocks against the one with them, which let everything through.

    Args:
        model: Without.
        whole: With, and with the same weights in everything else; it is left as it is.
        units: The blocks.
        size: Side of the images, px.
    """
    twin = copy.deepcopy(whole)
    bypass(twin.get_submodule(path) for path in units)
    return Proof(claim=CLAIM, error=largest_difference(model, twin, size))


def ranking_rows(ranking: Sequence[Ranked], found: Found) -> list[Mapping[str, object]]:
    """A ranking for a report: `unit`, `value`, `macs`."""
    return [{"unit": one.unit, "value": one.value, "macs": found.units[one.unit].macs} for one in ranking]
