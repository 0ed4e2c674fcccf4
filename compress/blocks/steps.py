"""Remove, recover, keep or take back: one block at a time, with nothing remembered but what is on disk.

    WORK/plan.json                  what the folder belongs to, and macro F1 of the model before
    WORK/step-01/begun.json         which block, and the ranking it was chosen by
    WORK/step-01/pressed.safetensors
    WORK/step-01/run/               the recovery
    WORK/step-01/step.json          how it ended: the step is complete

Each file appears whole or not at all. Whatever is there is not made again, so the same command goes on wherever it was
stopped, and ends with the same model.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from compress.blocks.find import Found
from compress.blocks.goal import Goal, left_after, macs_without
from compress.blocks.rank import Ranked
from pipelines.console.files import write_json
from pipelines.errors import UsageError

PLAN_NAME, BEGUN_NAME, STEP_NAME = "plan.json", "begun.json", "step.json"
PRESSED_NAME, RUN_NAME = "pressed.safetensors", "run"
ROUNDING = 1e-12
"""Macro F1 that is just as much lower as is allowed is allowed."""


class Tools(Protocol):
    """What a step is made of."""

    def rank(self, model: Path, units: Sequence[str]) -> list[Ranked]:
        """Order the blocks of a model."""
        ...

    def press(self, model: Path, unit: str, out: Path) -> None:
        """Write the model without a block; the file appears whole."""
        ...

    def recover(self, pressed: Path, run: Path) -> Path:
        """Train it; return the model file, which lies in the folder of the run."""
        ...

    def score(self, model: Path) -> float:
        """Macro F1."""
        ...


@dataclass(frozen=True, kw_only=True)
class Step:
    """How one step ended.

    Attributes:
        number: From 1.
        unit: The block.
        value: By which it was chosen.
        macro_f1: After recovery.
        kept: The block stays away.
        macs: Of the network without the block.
        model: The recovered model, relative to the work folder.
    """

    number: int
    unit: str
    value: float
    macro_f1: float
    kept: bool
    macs: int
    model: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Where all steps have led.

    Attributes:
        steps: All, in order.
        model: The last that was kept; the one before all steps if none was.
        before: Macro F1 of the latter.
        after: Macro F1 of the former.
        ranking: The first one.
        reached: The goal is.
    """

    steps: tuple[Step, ...]
    model: Path
    before: float
    after: float
    ranking: tuple[Ranked, ...]
    reached: bool

    @property
    def removed(self) -> list[str]:
        """The blocks that are gone, in order."""
        return [step.unit for step in self.steps if step.kept]


@dataclass(frozen=True, kw_only=True)
class _Begun:
    unit: str
    value: float
    ranking: tuple[Ranked, ...]


def press_in_steps(
    start: Path,
    work: Path,
    found: Found,
    goal: Goal,
    tools: Tools,
    *,
    allow: float,
    rerank: bool,
    belongs: Mapping[str, Any],
    pause: Callable[[], None] = lambda: None,
    tell: Callable[[Step], None] = lambda _: None,
) -> Outcome:
    """Remove the best-ranked block, recover, and keep that if macro F1 allows it; else take it back and try the next.

    Each block is tried once: one that could not be missed before can be missed still less when others are gone.

    Args:
        start: The model.
        work: Folder of the steps.
        found: What can be removed.
        goal: When to stop; besides, when all blocks have been tried.
        tools: What a step is made of.
        allow: How far macro F1 may fall below that of `start`. Losses of several steps do not add up beyond it.
        rerank: Rank anew after each block that stays away; otherwise the first ranking holds.
        belongs: What the folder belongs to; the same command gives the same.
        pause: Called between the parts of a step; may raise to stop.
        tell: Is told of each step that has ended, also of those of earlier calls.

    Raises:
        UsageError: The folder belongs to something else, or is damaged.
    """
    before = _plan(start, work, tools, belongs)
    steps: list[Step] = []
    begun: _Begun | None = None
    first: tuple[Ranked, ...] = ()
    model, left = start, goal.candidates(found.units)
    macs = found.macs
    while left and not goal.reached(sum(step.kept for step in steps), macs):
        pause()
        folder = work / f"step-{len(steps) + 1:02d}"
        fresh = begun is None or (steps[-1].kept and rerank)
        begun = _begin(folder, left, () if fresh or begun is None else begun.ranking, model, tools)
        first = first or begun.ranking
        pause()
        gone = [step.unit for step in steps if step.kept]
        step = _step(folder, begun, model, tools, before - allow, macs_without(found, [*gone, begun.unit]))
        steps.append(step)
        tell(step)
        left = left_after(step.unit, left) if step.kept else [unit for unit in left if unit != step.unit]
        if step.kept:
            model, macs = work / step.model, step.macs
    kept = [step for step in steps if step.kept]
    return Outcome(
        steps=tuple(steps),
        model=model,
        before=before,
        after=kept[-1].macro_f1 if kept else before,
        ranking=first,
        reached=goal.units is not None or goal.reached(len(kept), macs),
    )


def _plan(start: Path, work: Path, tools: Tools, belongs: Mapping[str, Any]) -> float:
    """Macro F1 of the model before; the folder is this command's from now on."""
    mine = json.loads(json.dumps(dict(belongs)))
    plan = _read(work / PLAN_NAME)
    if plan is None:
        if any(work.glob("step-*")):
            raise UsageError(f"{work} holds steps, but no plan; choose another --work, or delete it")
        score = tools.score(start)
        write_json(work / PLAN_NAME, {"macro_f1": score, "belongs": mine})
        return score
    try:
        theirs, score = dict(plan["belongs"]), float(plan["macro_f1"])
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{work / PLAN_NAME} is damaged ({error!r}); delete {work}") from error
    other = [f"{name} was {theirs.get(name)}, now {value}" for name, value in mine.items() if theirs.get(name) != value]
    if other:
        raise UsageError(f"--work {work} was begun with other options ({other[0]}); choose another, or delete it")
    return score


def _begin(folder: Path, left: Sequence[str], ranking: Sequence[Ranked], model: Path, tools: Tools) -> _Begun:
    """Choose the block of a step, unless that has been done."""
    path = folder / BEGUN_NAME
    value = _read(path)
    if value is not None:
        try:
            begun = _Begun(**value | {"ranking": tuple(Ranked(**one) for one in value["ranking"])})
        except (KeyError, TypeError) as error:
            raise UsageError(f"{path} is damaged ({error}); delete {folder}") from error
        if begun.unit not in left:
            raise UsageError(f"{path} speaks of {begun.unit}, which is no candidate here; delete {folder}")
        return begun
    order = tuple(ranking or tools.rank(model, left))
    best = next(one for one in order if one.unit in left)
    begun = _Begun(unit=best.unit, value=best.value, ranking=order)
    write_json(path, asdict(begun))
    return begun


def _step(folder: Path, begun: _Begun, model: Path, tools: Tools, floor: float, macs: int) -> Step:
    """Do what is left of a step."""
    path = folder / STEP_NAME
    value = _read(path)
    if value is not None:
        try:
            return Step(**value)
        except TypeError as error:
            raise UsageError(f"{path} is damaged ({error}); delete {folder}") from error
    pressed = folder / PRESSED_NAME
    if not pressed.is_file():
        tools.press(model, begun.unit, pressed)
    recovered = tools.recover(pressed, folder / RUN_NAME)
    score = tools.score(recovered)
    step = Step(
        number=int(folder.name.removeprefix("step-")),
        unit=begun.unit,
        value=begun.value,
        macro_f1=score,
        kept=score >= floor - ROUNDING,
        macs=macs,
        model=recovered.relative_to(folder.parent).as_posix(),
    )
    write_json(path, asdict(step))
    return step


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path} cannot be read ({error}); delete {path.parent}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path} cannot be read (no object); delete {path.parent}")
    return value
