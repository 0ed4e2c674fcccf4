"""What all sections share: what they are told, where they write, how a job is run."""

import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from pipelines.console.files import write_json
from pipelines.console.output import say

ROOT = Path(__file__).parents[2]
TAIL_LINES = 15


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a section is told.

    Attributes:
        work: Folder of all sections: photos, crops, caches.
        record: The JSON file that the section writes.
        gpu: There is one; otherwise everything runs on the CPU.
        rehearsal: Tiny sizes and counts: no figure means anything.
        deadline: Unix time at which the section should be done.
    """

    work: Path
    record: Path
    gpu: bool
    rehearsal: bool
    deadline: float

    @classmethod
    def parse(cls, text: str) -> "Setting":
        """From JSON."""
        values = json.loads(text)
        return cls(**{**values, "work": Path(values["work"]), "record": Path(values["record"])})

    @property
    def device(self) -> Any:
        """torch.device of the networks."""
        import torch  # here, because the suite has to run where torch cannot be imported

        return torch.device("cuda", 0) if self.gpu else torch.device("cpu")

    @property
    def where(self) -> Any:
        """What engines call that device."""
        return "gpu" if self.gpu else "cpu"

    def pick(self, real: Any, rehearsed: Any) -> Any:
        """A number of the measurement, or the tiny one of the rehearsal."""
        return rehearsed if self.rehearsal else real

    def px(self, size: int) -> int:
        """Side of the images that stand for those of `size` px."""
        return int(self.pick(size, {64: 32, 224: 64, 96: 48}[size]))

    def cache(self, name: str) -> Path:
        """One of the caches that `prepare` has built: raw64, jpeg64, jpeg96, jpeg224."""
        return self.work / "caches" / name

    def late(self, seconds: float = 0.0) -> bool:
        """Whether there is no time left for something that takes so many seconds."""
        return time.time() + seconds > self.deadline

    def sync(self) -> None:
        """Wait for the GPU."""
        if self.gpu:
            import torch

            torch.cuda.synchronize()


class Record:
    """What a section found; on the disk after every line, so that nothing is lost when it is cut off.

    Args:
        path: The JSON file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.value: dict[str, Any] = {"facts": {}, "rows": [], "tables": [], "notes": [], "failures": []}
        self.save()

    def save(self) -> None:
        """Write it down."""
        write_json(self._path, self.value)

    def row(
        self,
        what: str,
        measured: float | None,
        unit: str,
        *,
        goal: float | None = None,
        at_most: bool = False,
        values: Sequence[float] = (),
        note: str = "",
    ) -> None:
        """One figure.

        Args:
            what: Its name.
            measured: The figure; None for the median of `values`.
            unit: Of it.
            goal: What it should be at least.
            at_most: It should be at most the goal.
            values: All measured ones, of which least and most are shown.
            note: What else is to be said.
        """
        found = median(values) if measured is None and values else measured
        spread = [min(values), max(values)] if len(values) > 1 else None
        entry = {"what": what, "measured": found, "unit": unit, "spread": spread, "goal": goal, "at_most": at_most}
        self.value["rows"].append({**entry, "note": note})
        say(f"  {what}: {found} {unit}")
        self.save()

    def table(self, title: str, headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """More figures."""
        self.value["tables"] = [entry for entry in self.value["tables"] if entry["title"] != title]
        self.value["tables"].append({"title": title, "headers": list(headers), "rows": [list(row) for row in rows]})
        self.save()

    def note(self, text: str) -> None:
        """A sentence."""
        self.value["notes"].append(text)
        say(f"  {text}")
        self.save()

    def fact(self, **facts: Any) -> None:
        """For the head of the report."""
        self.value["facts"].update(facts)
        self.save()

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """What fails inside is written down, and the section goes on."""
        try:
            yield
        except Exception as error:
            said = traceback.format_exc()
            say(said)
            more = getattr(error, "stderr", None) or said
            self.value["failures"].append(
                {"name": name, "message": f"{type(error).__name__}: {error}"[:600], "tail": tail(more)}
            )
            self.save()


def tail(text: str) -> list[str]:
    """The last lines."""
    return [line[:300] for line in text.rstrip().splitlines()[-TAIL_LINES:]]


def job(name: str, *words: object, **environment: str) -> dict[str, Any]:
    """Run a job in a process of its own and return its report.

    Raises:
        subprocess.CalledProcessError: It failed; `stderr` has its words.
    """
    command = [sys.executable, "-m", name, *map(str, words), "--json"]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment}
    )
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def has_dali() -> bool:
    """Whether DALI can be imported."""
    from pipelines.engines.dali_compat import dali_version

    return dali_version() is not None
