"""What stands beside every measured time: the machine, how busy it is, and versions."""

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipelines.console.cores import usable_cores


def circumstances(packages: Sequence[str]) -> dict[str, Any]:
    """The machine as it is now.

    Args:
        packages: Whose versions matter.

    Returns:
        `cpu`, `cores` that this process may use, `load` (average over the last minute; None where there is no such
        thing), `system`, `python`, `versions` of the packages that are installed.
    """
    return {
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "load": load_average(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: found for name in packages if (found := installed_version(name))},
    }


def load_average() -> float | None:
    """Processes that ran or waited for a core, averaged over the last minute; None where the system does not count."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def cpu_model() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text(encoding="utf-8").splitlines() if info.is_file() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def installed_version(name: str) -> str | None:
    """Version of a package, None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
