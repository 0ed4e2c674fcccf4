"""How much memory this process takes (Linux)."""

import gc
import os
from pathlib import Path

MIB = 1 << 20


def resident_bytes():
    """What is in memory, after a collection."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
