"""How long this process has been running, its start-up included."""

import os
import time

_IMPORTED = time.monotonic()


def seconds_since_start() -> float:
    """Seconds since the operating system started this process.

    Linux says so to 10 ms; elsewhere it is the time since this module was imported, which leaves out the interpreter's
    own start.
    """
    try:
        with open("/proc/self/stat", encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - pathlib is slow to load
            fields = file.read().rpartition(")")[2].split()
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, IndexError, ValueError):
        return time.monotonic() - _IMPORTED
