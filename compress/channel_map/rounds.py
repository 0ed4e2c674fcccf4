"""Cut a little, recover, cut again: rounds with nothing remembered but what is on disk.

    WORK/plan.json                    what the folder belongs to
    WORK/round-01/pressed.safetensors
    WORK/round-01/run/                the recovery

Each file appears whole or not at all, and what is there is not made again.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from compress.press.contract import NoEffectError
from compress.press.working import belongs_to
from pipelines.console.files import write_json

PRESSED_NAME, SKIPPED_NAME, RUN_NAME = "pressed.safetensors", "skipped.json", "run"


def shares(goal: float, rounds: int) -> list[float]:
    """What is left after each round, as a share of the beginning: equal factors, the last is the goal.

    Args:
        goal: Share that is left in the end, above 0.
        rounds: How many.
    """
    return [goal ** ((number + 1) / rounds) for number in range(rounds)]


def press_in_rounds(
    start: Path,
    work: Path,
    rounds: int,
    *,
    press: Callable[[Path, int, Path], None],
    recover: Callable[[Path, Path], Path],
    belongs: Mapping[str, Any],
    pause: Callable[[], None] = lambda: None,
) -> Path:
    """Press and recover, some rounds.

    Args:
        start: The model.
        work: Folder of the rounds.
        rounds: How many.
        press: Writes the pressed model of a model and the number of a round, from 0; the file appears whole.
        recover: Trains a pressed model in a folder; returns the model file.
        belongs: What the folder belongs to; the same command gives the same.
        pause: Called before each part; may raise to stop.

    Returns:
        The model after the last recovery.

    Raises:
        UsageError: The folder belongs to something else.
        NoEffectError: No round changes anything.
    """
    belongs_to(work, belongs)
    model = start
    for number in range(rounds):
        folder = work / f"round-{number + 1:02d}"
        pressed = folder / PRESSED_NAME
        pause()
        if (folder / SKIPPED_NAME).is_file():
            continue
        if not pressed.is_file():
            try:
                press(model, number, pressed)
            except NoEffectError as error:  # the round before took more than it had to
                write_json(folder / SKIPPED_NAME, {"why": str(error)})
                continue
        pause()
        model = recover(pressed, folder / RUN_NAME)
    if model == start:
        raise NoEffectError(f"no round changes anything in {start}; ask for more")
    return model
