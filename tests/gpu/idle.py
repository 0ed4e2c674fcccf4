"""How idle the GPU was.

The driver's own counter (NVML's utilisation: the share of the last sample period in which any kernel ran) is asked ten
times a second by a thread. CUDA events would see only the streams of torch, but DALI works on streams of its own, and
a loader's work overlaps with that of a network.
"""

import threading
import time
from collections.abc import Callable

LATE = 0.25
"""Seconds at the beginning of a window of which the counter still shows what was before."""


class Idle:
    """Watches one GPU while it is open.

    Args:
        read: Gives the utilisation in percent.
        seconds: Between two looks.

    Attributes:
        obstacle: Why nothing more can be read, in words; empty as long as it can.
    """

    def __init__(self, read: Callable[[], float], seconds: float = 0.1) -> None:
        self._read, self._seconds = read, seconds
        self._seen: list[tuple[float, float]] = []
        self.obstacle = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Idle":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=5)

    def _watch(self) -> None:
        while not self._stop.wait(self._seconds):
            try:
                self._seen.append((time.perf_counter(), float(self._read())))
            except Exception as error:  # no NVML
                self.obstacle = f"how idle the GPU was cannot be told: {type(error).__name__}: {error}"
                return

    def share(self, windows: list[tuple[float, float]]) -> float | None:
        """Mean idle share, 0 to 1, over some spans of `time.perf_counter`; None if nothing was seen in them."""
        seen = [value for when, value in self._seen if any(start + LATE <= when <= end for start, end in windows)]
        return 1 - sum(seen) / len(seen) / 100 if seen else None


def utilisation() -> float:
    """Of the first GPU, in percent; raises where NVML cannot be asked, or `pip install nvidia-ml-py` is missing."""
    import torch

    return float(torch.cuda.utilization(0))


def words(share: float | None) -> str:
    """For a table."""
    return "-" if share is None else f"{share:.0%}"
