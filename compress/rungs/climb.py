"""Climb a ladder: press, recover, evaluate, keep or roll back, rung by rung; nothing is remembered but what is on disk.

    WORK/plan.json                  what the folder belongs to
    WORK/rung-00/evaluation_*.json  the model that the ladder begins with
    WORK/rung-01/pressed.safetensors, pressed.json
    WORK/rung-01/run/               the recovery
    WORK/rung-01/rung.json          how it ended: the rung is complete

Each file appears whole or not at all, and what is there is not made again. Rungs that are complete may be moved with
the folder: models are named relative to it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from compress.press.contract import NoEffectError
from compress.press.working import belongs_to
from compress.rungs.recipe import Rung
from pipelines.console.files import write_json
from pipelines.errors import UsageError

RUNG_NAME, PRESSED_NAME, RUN_NAME = "rung.json", "pressed.safetensors", "run"
Verdict = Literal["start", "kept", "rolled back", "no effect"]


class Tools(Protocol):
    """What a rung is made of."""

    def press(self, rung: Rung, number: int, model: Path, macs: int | None, out: Path) -> dict[str, Any]:
        """Write the pressed model, whole; the report of the press."""
        ...

    def recover(self, rung: Rung, pressed: Path, run: Path) -> Path:
        """Train it; the model file."""
        ...

    def evaluate(self, model: Path, folder: Path) -> dict[str, Any]:
        """What `training.evaluate` says of it; `macro_f1` and `macs` at least."""
        ...


@dataclass(frozen=True, kw_only=True)
class Climbed:
    """How a rung ended.

    Attributes:
        number: From 1; 0 is where the ladder begins.
        press: Name; empty for the beginning.
        verdict: What became of it.
        model: The model after it, recovered if it was. In `rung.json` relative to WORK, empty for the beginning.
        macro_f1: Of that model, on the split that is decided by.
        macs: Of that model.
        why: What to say of it.
        evaluation: See `training.evaluate`; None where the press had no effect.
        tested: The same of the test split, which decides nothing; None where it was not asked for.
    """

    number: int
    press: str
    verdict: Verdict
    model: str
    macro_f1: float
    macs: int
    why: str
    evaluation: Mapping[str, Any] | None
    tested: Mapping[str, Any] | None = None


def climb(
    start: Path,
    work: Path,
    rungs: Sequence[Rung],
    tools: Tools,
    *,
    allow: float,
    macs: int | None,
    belongs: Mapping[str, Any],
    pause: Callable[[], None] = lambda: None,
    tell: Callable[[Climbed], None] = lambda _: None,
) -> list[Climbed]:
    """Climb.

    Args:
        start: The model.
        work: Folder of the rungs.
        rungs: In order.
        tools: What a rung is made of.
        allow: How far macro F1 may fall from one kept rung to the next.
        macs: What the last rung has to reach: rungs without a goal of their own get equal shares of the way there.
        belongs: What the folder belongs to; the same command gives the same.
        pause: Called between the parts of a rung; may raise to stop.
        tell: Is told of each rung that has ended, also of those of earlier calls.

    Returns:
        The beginning, and each rung.

    Raises:
        UsageError: The folder belongs to something else, or is damaged.
    """
    belongs_to(work, belongs)
    climbed = [_beginning(start, work / "rung-00", tools)]
    tell(climbed[0])
    last = climbed[0]
    for number, rung in enumerate(rungs, start=1):
        pause()
        left = sum(later.free for later in rungs[number - 1 :])
        wanted = share_of_the_way(last.macs, macs, left) if rung.free and macs is not None else None
        folder = work / f"rung-{number:02d}"
        ended = _read(folder, start) or _climb(number, rung, folder, last, start, tools, allow, wanted, pause)
        climbed.append(ended)
        tell(ended)
        last = ended if ended.verdict == "kept" else last
    return climbed


def share_of_the_way(now: int, goal: int, rungs: int) -> int:
    """What the next of some rungs has to reach, so that all take away the same factor.

    Args:
        now: MACs.
        goal: MACs after the last rung.
        rungs: How many are left, this one included.
    """
    return goal if goal >= now else round(now * (goal / now) ** (1 / rungs))


def best_of(climbed: Sequence[Climbed]) -> Climbed:
    """The last that was kept."""
    return [one for one in climbed if one.verdict in ("start", "kept")][-1]


def _beginning(start: Path, folder: Path, tools: Tools) -> Climbed:
    found = _read(folder, start)
    if found is not None:
        return found
    evaluation = tools.evaluate(start, folder)
    return _write(folder, 0, "", "start", start, evaluation, "", start)


def _climb(
    number: int,
    rung: Rung,
    folder: Path,
    before: Climbed,
    start: Path,
    tools: Tools,
    allow: float,
    macs: int | None,
    pause: Callable[[], None],
) -> Climbed:
    """Do what is left of a rung."""
    pressed = folder / PRESSED_NAME
    if not pressed.is_file():
        try:
            report = tools.press(rung, number, Path(before.model), macs, pressed)
        except NoEffectError as error:
            return _write(folder, number, rung.press, "no effect", Path(before.model), None, str(error), start, before)
        write_json(pressed.with_suffix(".json"), report)
    pause()
    model = pressed if rung.recover is None else tools.recover(rung, pressed, folder / RUN_NAME)
    pause()
    evaluation = tools.evaluate(model, folder)
    floor = before.macro_f1 - (allow if rung.allow is None else rung.allow)
    kept = evaluation["macro_f1"] >= floor
    why = "" if kept else f"macro F1 {evaluation['macro_f1']:.4f} is below {floor:.4f}"
    return _write(folder, number, rung.press, "kept" if kept else "rolled back", model, evaluation, why, start)


def _write(
    folder: Path,
    number: int,
    press: str,
    verdict: Verdict,
    model: Path,
    evaluation: Mapping[str, Any] | None,
    why: str,
    start: Path,
    before: Climbed | None = None,
) -> Climbed:
    tested = None if evaluation is None else evaluation.get("tested")
    ended = Climbed(
        number=number,
        press=press,
        verdict=verdict,
        model=str(model.absolute()),
        macro_f1=before.macro_f1 if before else float((evaluation or {})["macro_f1"]),
        macs=before.macs if before else int((evaluation or {})["macs"]),
        why=why,
        evaluation=None if evaluation is None else {key: value for key, value in evaluation.items() if key != "tested"},
        tested=tested,
    )
    write_json(folder / RUNG_NAME, {**asdict(ended), "model": _name(model, folder.parent, start)})
    return ended


def _name(model: Path, work: Path, start: Path) -> str:
    """How `rung.json` names a model: empty for the beginning, relative to the folder, absolute outside of it."""
    if model.resolve() == start.resolve():
        return ""
    path, folder = model.absolute(), work.absolute()
    return path.relative_to(folder).as_posix() if folder in path.parents else str(path)


def _named(name: str, work: Path, start: Path) -> Path:
    """The other way round. Once all names were absolute: what they say of a rung is taken from this folder's own."""
    parts = Path(name).parts
    rungs = [number for number, part in enumerate(parts) if part.startswith("rung-")]
    return work.joinpath(*parts[rungs[-1] if rungs else 0 :]) if name else start


def _read(folder: Path, start: Path) -> Climbed | None:
    """How a rung ended, if it has.

    Args:
        folder: Of the rung.
        start: The model that the ladder begins with.
    """
    path = folder / RUNG_NAME
    if not path.is_file():
        return None
    try:
        ended = Climbed(**json.loads(path.read_text(encoding="utf-8")))
        model = _named(ended.model, folder.parent, start)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path} cannot be read ({error}); delete {folder} and the rungs after it") from error
    if ".." in Path(ended.model).parts or not model.is_file():
        raise UsageError(f"{path}: the model {model} is gone; bring it back, or delete {folder} and the rungs after it")
    return replace(ended, model=str(model.absolute()))
