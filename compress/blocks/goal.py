"""How many blocks are to go."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compress.blocks.find import Found, Unit, inside
from compress.press.contract import NoEffectError, OutOfReachError
from pipelines.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Goal:
    """When enough blocks have been removed. Exactly one is given.

    Attributes:
        count: So many blocks.
        units: These and no others.
        macs: The network costs at most so much.
    """

    count: int | None = None
    units: tuple[str, ...] | None = None
    macs: int | None = None

    def reached(self, removed: int, macs: int) -> bool:
        """Whether it is reached.

        Args:
            removed: How many blocks have been removed.
            macs: What the network costs now.
        """
        if self.count is not None:
            return removed >= self.count
        return self.macs is not None and macs <= self.macs

    def candidates(self, units: Mapping[str, Unit]) -> list[str]:
        """Which blocks may be removed, in the order of the network."""
        return [path for path in units if self.units is None or path in self.units]


def check_goal(goal: Goal, found: Found) -> None:
    """See whether it can be reached at all.

    Raises:
        UsageError: It cannot.
        NoEffectError: It is reached already.
    """
    for path in goal.units or ():
        if path not in found.units:
            near = found.skipped.get(path, f"those that can: {', '.join(found.units) or 'none'}")
            raise UsageError(f"--modules: {path} cannot be removed ({near})")
    nested = [path for path in goal.units or () if outer_of(path, goal.units or ())]
    if nested:
        raise UsageError(
            f"--modules: {nested[0]} lies within {outer_of(nested[0], goal.units or ())}; name one of them"
        )
    outermost = [path for path in found.units if not outer_of(path, tuple(found.units))]
    if goal.count is not None and goal.count > len(found.units):
        raise UsageError(f"--count {goal.count}: only {len(found.units)} blocks can be removed")
    least = found.macs - sum(found.units[path].macs for path in outermost)
    if goal.macs is not None and goal.macs < least:
        raise OutOfReachError(
            f"a target of {goal.macs:,} MACs cannot be reached: without all {len(outermost)} blocks that can go, "
            f"{least:,} are left; give a higher one, or let another press do the rest",
            least,
        )
    if goal.macs is not None and goal.macs >= found.macs:
        raise NoEffectError(f"the model costs {found.macs:,} MACs, not more than the target of {goal.macs:,}")


def outer_of(path: str, paths: Sequence[str]) -> str:
    """One of the paths that a module lies within; empty if there is none."""
    return next((other for other in paths if inside(path, other)), "")


def left_after(path: str, units: Sequence[str]) -> list[str]:
    """What can still be removed once a block is gone: not itself, nor what was in it."""
    return [unit for unit in units if unit != path and not inside(unit, path)]


def macs_without(found: Found, removed: Sequence[str]) -> int:
    """What the network costs without some blocks; one that lies within another counts with that one."""
    return found.macs - sum(found.units[path].macs for path in removed if not outer_of(path, removed))
