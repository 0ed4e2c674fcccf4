"""What the steps of removing and recovering are made of, and the model that they end with."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.blocks.find import Found
from compress.blocks.rank import Ranked
from compress.blocks.removal import PRESS, Rank, prove, remove_units
from compress.blocks.steps import Outcome
from compress.press.contract import NoEffectError, Pressed, Subject, before_presses, open_subject, write_pressed
from compress.press.recover import recover
from compress.press.samples import Samples, quality


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """`compress.blocks.steps.Tools` for models and data.

    Attributes:
        found: What can be removed.
        order: Ranks.
        samples: What macro F1 is measured on.
        recipe: Of the recovery.
        overrides: Options of the recovery, by dotted names.
        recovery: Trains; see `compress.press.recover.recover`.
    """

    found: Found
    order: Rank
    samples: Samples
    recipe: Path
    overrides: Mapping[str, Any]
    recovery: Callable[[Path, Path, Path, Mapping[str, Any]], Path] = recover

    def rank(self, model: Path, units: Sequence[str]) -> list[Ranked]:
        """See `Tools`."""
        return self.order(open_subject(model).model, units)

    def press(self, model: Path, unit: str, out: Path) -> None:
        """See `Tools`."""
        subject = open_subject(model)
        write_pressed(subject, remove_units(subject, [unit], self.found), out, PRESS, {})

    def recover(self, pressed: Path, run: Path) -> Path:
        """See `Tools`."""
        return self.recovery(pressed, self.recipe, run, self.overrides)

    def score(self, model: Path) -> float:
        """See `Tools`."""
        return quality(open_subject(model).model, self.samples).macro_f1


def final(subject: Subject, outcome: Outcome, found: Found) -> tuple[Subject, Pressed]:
    """The model that the steps ended with, as what was made of the first one: for one report over all of them.

    Returns:
        The first model, whose card says how the last was trained; and what became of it.

    Raises:
        NoEffectError: Every block had to be put back.
    """
    units = outcome.removed
    if not units:
        raise NoEffectError(
            f"{PRESS} changes nothing in {subject.path}: without any of {len(outcome.steps)} blocks macro F1 falls "
            "by more than --allow; raise it, or recover for longer"
        )
    last = open_subject(outcome.model)
    whole = copy.deepcopy(subject.model)
    whole.load_state_dict(last.model.state_dict(), strict=False)
    pressed = Pressed(
        model=last.model,
        edits=last.card.edits[len(subject.card.edits) :],
        proof=prove(last.model, whole, units, subject.card.size),
        changed={path: f"{found.units[path].type_name} removed, {found.units[path].macs:,} MACs" for path in units},
        skipped={**found.skipped, **_put_back(outcome)},
    )
    return before_presses(subject, last), pressed


def _put_back(outcome: Outcome) -> dict[str, str]:
    return {
        step.unit: f"put back: macro F1 {step.macro_f1:.4f} without it, after recovery"
        for step in outcome.steps
        if not step.kept
    }
