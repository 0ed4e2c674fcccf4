"""One run of one contestant in this fresh process: import, warm up, build, say how long it took.

    python -m tests.benchmarks.rivals.contestant NAME SIZE WARM_FOLDER DATA_FOLDER OUT_FOLDER

Prints one JSON object. `cpu` counts this process, those that it has waited for, and those that still run.
"""

import importlib
import json
import resource
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psutil  # type: ignore[import-untyped]


class Builder(Protocol):
    """A contestant, ready to work."""

    def build(self, data: Path, out: Path) -> None:
        """Make the three images of every source of a folder of class folders, in a folder that is not there yet."""
        ...

    def close(self) -> None:
        """Stop threads and processes."""
        ...


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """Who takes part.

    Attributes:
        title: For the table.
        module: In this package; its `make(size, **options)` gives the `Builder`.
        options: For `make`.
        rounds: Takes part in no more rounds than this.
    """

    title: str
    module: str
    options: dict[str, Any] = field(default_factory=dict)
    rounds: int = 1_000_000


CONTESTANTS: dict[str, Contestant] = {
    "albumentations": Contestant(title="albumentations, 2 processes", module="albumentations_pool"),
    "torchvision": Contestant(title="Pillow + torchvision v2, 2 processes", module="torchvision_pool"),
    "floor": Contestant(title="floor: full decode + encode, threads", module="floor"),
    "ours-1": Contestant(title="Tacopress, 1 process", module="ours", options={"processes": 1, "engine": "cpu"}),
    "ours-2": Contestant(title="Tacopress, 2 processes", module="ours", options={"processes": 2, "engine": "cpu"}),
    "ours-dali": Contestant(
        title="Tacopress, DALI on the CPU", module="ours", options={"processes": 1, "engine": "dali"}, rounds=2
    ),
}
"""Name → contestant, in the order of the table."""


def cpu_seconds() -> float:
    """CPU seconds, user and system, of this process and all its children, alive or not."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    waited_for = sum(usage.ru_utime + usage.ru_stime for usage in used)
    # A child that still runs counts with those that it has waited for itself.
    return waited_for + sum(sum(child.cpu_times()[:4]) for child in psutil.Process().children(recursive=True))


def run(name: str, size: int, warm: Path, data: Path, out: Path) -> dict[str, float]:
    """Warm up with one folder, then build another.

    Returns:
        `wall` and `cpu`: seconds of the build. `warm_up`: seconds before it, after the imports.
    """
    contestant = CONTESTANTS[name]
    builder: Builder = importlib.import_module(f"{__package__}.{contestant.module}").make(size, **contestant.options)
    begin = time.perf_counter()
    builder.build(warm, out / "warm")
    ready, cpu = time.perf_counter(), cpu_seconds()
    builder.build(data, out / "done")
    wall, cpu = time.perf_counter() - ready, cpu_seconds() - cpu
    builder.close()
    return {"wall": wall, "cpu": cpu, "warm_up": ready - begin}


def main() -> None:
    """Run and report."""
    name, size, *folders = sys.argv[1:]
    warm, data, out = map(Path, folders)
    sys.stdout.write(json.dumps(run(name, int(size), warm, data, out)) + "\n")


if __name__ == "__main__":
    main()
