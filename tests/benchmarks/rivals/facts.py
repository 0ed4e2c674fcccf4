"""What stands beside every figure: the machine, versions, the commit, and how figures are put."""

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

from training.measure.circumstances import cpu_model, installed_version

ROOT = Path(__file__).parents[3]


def circumstances(packages: Sequence[str]) -> dict[str, Any]:
    """Machine, versions, date, commit and command of a measurement."""
    return {
        "date": date.today().isoformat(),
        "command": " ".join(["python -m", _module(), *map(_unplaced, sys.argv[1:])]),
        "git": _git(),
        "machine": {
            "cpu": cpu_model(),
            "cores": len(os.sched_getaffinity(0)),
            "kernel": platform.release(),
            "python": platform.python_version(),
        },
        "versions": {name: found for name in packages if (found := installed_version(name))},
    }


def _module() -> str:
    path = Path(sys.argv[0]).resolve()
    return ".".join(path.relative_to(ROOT).with_suffix("").parts) if ROOT in path.parents else path.name


def _unplaced(word: str) -> str:
    """A word of the command line without anybody's paths."""
    return Path(word).name if "/" in word else word


def _git() -> str:
    """The commit, with a plus sign where files differ from it."""
    words = ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def middle_and_ends(values: Sequence[float]) -> tuple[float, float, float]:
    """(median, least, most)."""
    return median(values), min(values), max(values)


def spread(values: Sequence[float], digits: int) -> str:
    """'median (least-most)', or the value alone where there is one."""
    middle, least, most = middle_and_ends(values)
    text = f"{middle:,.{digits}f}"
    return text if len(values) == 1 else f"{text} ({least:,.{digits}f}-{most:,.{digits}f})"
