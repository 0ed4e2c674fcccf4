"""Progress with time left: a bar on a terminal, a plain line every few seconds elsewhere, nothing when disabled."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

from pipelines.console.output import human_seconds, say

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

SECONDS_BETWEEN_LINES = 15.0


class ProgressMeter:
    """Counts units of work towards a total, as a context manager.

    Args:
        label: What is being done, for example `crop`.
        total: Number of units; 0 shows nothing.
        unit: Name of a unit in the plural, for example `photos`.
        enabled: False on every rank but the first.
    """

    def __init__(self, label: str, total: int, unit: str, *, enabled: bool = True) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = 0
        self._enabled = enabled and total > 0
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._start = self._last_line = time.monotonic()

    def __enter__(self) -> "ProgressMeter":
        self._start = self._last_line = time.monotonic()
        if self._enabled and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task(self.label, total=self.total, note=self.unit)
            self._bar.start()
        return self

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count finished units; `note` (a loss, a rate) is shown behind the count."""
        self.done += count
        if not self._enabled:
            return
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=count, note=note or self.unit)
            return
        now = time.monotonic()
        if now - self._last_line >= SECONDS_BETWEEN_LINES and self.done < self.total:
            self._last_line = now
            say(self._line(now - self._start, note))

    def _line(self, elapsed: float, note: str) -> str:
        left = elapsed / self.done * (self.total - self.done) if self.done else 0.0
        rate = self.done / elapsed if elapsed else 0.0
        extra = f" · {note}" if note else ""
        share = 100 * self.done // self.total
        return (
            f"{self.label}: {self.done:,} of {self.total:,} {self.unit} ({share} %) · {rate:,.1f}/s · "
            f"{human_seconds(left)} left{extra}"
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
