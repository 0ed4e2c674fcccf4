"""A folder that a long press works in: for this process alone, and left in order when a signal comes."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.console.files import write_json
from pipelines.errors import UsageError
from training.engine.folder import hold, let_go
from training.engine.preemption import StopSignals, Wish, preempted

MAX_REQUEUES = 20
PLAN_NAME = "plan.json"


@contextmanager
def working_in(work: Path) -> Iterator[Callable[[], None]]:
    """Keep other processes out of a folder, and turn signals into a stop between two parts of the work.

    Args:
        work: The folder; made if it is not there.

    Yields:
        What to call between the parts: it raises PreemptedError after a signal.

    Raises:
        UsageError: It is a file, or another process works there.
    """
    if work.exists() and not work.is_dir():
        raise UsageError(f"--work {work} is a file; choose another")
    lock = hold(work)
    try:
        with StopSignals() as signals:

            def pause() -> None:
                if signals.wish is Wish.STOP:
                    raise preempted(signals.received, work, MAX_REQUEUES)

            yield pause
    finally:
        let_go(work, lock)


def belongs_to(work: Path, mine: Mapping[str, Any]) -> None:
    """Write what a folder belongs to, or see that it belongs to the same.

    Args:
        work: The folder; `plan.json` in it holds what it belongs to.
        mine: JSON values by name; the same command gives the same.

    Raises:
        UsageError: It belongs to something else, or holds work but no plan.
    """
    path, wanted = work / PLAN_NAME, json.loads(json.dumps(dict(mine)))
    if not path.is_file():
        if any(entry.is_dir() for entry in work.glob("*-[0-9]*")):
            raise UsageError(f"{work} holds work, but no plan; choose another --work, or delete it")
        write_json(path, wanted)
        return
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
        other = [name for name, value in wanted.items() if theirs.get(name) != value]
    except (ValueError, AttributeError) as error:
        raise UsageError(f"{path} cannot be read ({error}); delete {work}") from error
    if other:
        name = other[0]
        raise UsageError(
            f"--work {work} was begun with other options ({name} was {theirs.get(name)}, now {wanted[name]}); choose "
            "another, or delete it"
        )
