"""Where words go: reports to standard output, everything else to standard error."""

import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

WIDTH_WITHOUT_TERMINAL = 120


def emit(report: dict[str, Any], *, as_json: bool, table: Callable[[dict[str, Any]], str] | None) -> None:
    """Print a report on standard output, as JSON or through its table."""
    if as_json:
        sys.stdout.write(json.dumps(report, indent=2, sort_keys=False) + "\n")
    elif table is not None:
        sys.stdout.write(table(report).rstrip("\n") + "\n")
    sys.stdout.flush()


def as_text(name: str) -> str:
    """A path as text that can be written: bytes that are no UTF-8 become escapes, so that names stay different."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def say(line: str) -> None:
    """Print a line for people on standard error; never part of a report."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def render_table(headers: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "") -> str:
    """Lay out rows as plain text.

    Args:
        headers: Column names; a name that starts with `>` (not shown) makes its column right-aligned.
        rows: Cells; floats are shown with four decimals, integers with thousands separators, None as a dash.
        title: Printed above the table.

    Returns:
        The text, without trailing white space.
    """
    from rich.box import SIMPLE_HEAD  # here, because a job may end before it has a table to show
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, title=title or None, title_justify="left", title_style="", pad_edge=False)
    for header in headers:
        table.add_column(header.removeprefix(">"), justify="right" if header.startswith(">") else "left")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    stream = io.StringIO()
    Console(file=stream, width=WIDTH_WITHOUT_TERMINAL, color_system=None, markup=False, highlight=False).print(table)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()).strip("\n")


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4f}"
    return str(value)


def human_bytes(count: float) -> str:
    """Bytes with a binary unit: 1536 → '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if round(count, 1) < 1024 or unit == "GiB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def human_seconds(seconds: float) -> str:
    """Seconds as people say them: 3725 → '1 h 02 min', 75 → '1 min 15 s', 7.5 → '7.5 s'."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
